"""Reports and comparisons: pure functions on arrays to a Report, and a Report to text and HTML."""

from fastserve.evaluation.classification import evaluate_classification
from fastserve.evaluation.comparison import Comparison, compare

__all__ = ["Comparison", "compare", "evaluate_classification"]
