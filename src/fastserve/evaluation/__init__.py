"""Reports and comparisons: pure functions on arrays to a Report, and a Report to text and HTML."""

from fastserve.evaluation.classification import evaluate_classification

__all__ = ["evaluate_classification"]
