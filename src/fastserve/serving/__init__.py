"""Classifiers over HTTP: protocols, batcher, workers, limits, metrics."""

from fastserve.serving.options import ServeOptions
from fastserve.serving.serve import serve

__all__ = ["ServeOptions", "serve"]
