"""Reports and comparisons: pure functions on arrays to a Report, and a Report to text and HTML."""

from fastserve.evaluation.classification import evaluate_classification
from fastserve.evaluation.comparison import Comparison, compare
from fastserve.evaluation.html import comparison_html, report_html
from fastserve.evaluation.text import comparison_text, report_text

__all__ = [
    "Comparison",
    "compare",
    "comparison_html",
    "comparison_text",
    "evaluate_classification",
    "report_html",
    "report_text",
]
