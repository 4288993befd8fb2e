"""Decoding in C, where the machine can build it: products of matrices, and whole steps in one call."""

from fastserve.generation.native.panels import SPAN, Kind, Panels, decoding, serves

__all__ = ["SPAN", "Kind", "Panels", "decoding", "serves"]
