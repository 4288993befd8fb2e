"""Classifiers over HTTP: protocols, batcher, workers, limits, metrics."""

from fastserve.serving.options import ServeOptions

__all__ = ["ServeOptions"]
