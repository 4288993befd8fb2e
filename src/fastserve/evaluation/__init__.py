"""Reports and comparisons: pure functions on arrays to a Report, and a Report to text and HTML."""

from fastserve.evaluation.checks import Check
from fastserve.evaluation.classification import evaluate_classification
from fastserve.evaluation.comparison import Comparison, compare
from fastserve.evaluation.html import comparison_html, report_html
from fastserve.evaluation.language import Sample, evaluate_language
from fastserve.evaluation.language_comparison import LanguageComparison, compare_language
from fastserve.evaluation.needed import Needed, needed
from fastserve.evaluation.text import comparison_text, report_text

__all__ = [
    "Check",
    "Comparison",
    "LanguageComparison",
    "Needed",
    "Sample",
    "compare",
    "compare_language",
    "comparison_html",
    "comparison_text",
    "evaluate_classification",
    "evaluate_language",
    "needed",
    "report_html",
    "report_text",
]
