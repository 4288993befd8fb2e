"""Decoding in C, where the machine can build it: products of matrices, and whole steps in one call."""

from fastserve.generation.native.panels import Kind, Panels, serves

__all__ = ["Kind", "Panels", "serves"]
