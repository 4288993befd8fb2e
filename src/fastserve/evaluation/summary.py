"""A report in plain words: a few sentences for people who do not read tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastserve.types import Metric, Report

TITLES = {
    "accuracy": "Accuracy",
    "f1_macro": "Macro F1",
    "roc_auc": "ROC AUC",
    "log_loss": "Log loss",
    "calibration_error": "Calibration error",
    "brier": "Brier score",
    "precision_macro": "Macro precision",
    "recall_macro": "Macro recall",
    "precision_micro": "Micro precision",
    "recall_micro": "Micro recall",
    "f1_micro": "Micro F1",
    "precision_weighted": "Weighted precision",
    "recall_weighted": "Weighted recall",
    "f1_weighted": "Weighted F1",
    "bits_per_character": "Bits per character",
    "bits_per_byte": "Bits per byte",
    "perplexity": "Perplexity",
    "loss": "Loss",
}
MEANINGS = {
    "accuracy": "share of rows with the right answer",
    "f1_macro": "precision and recall together, every label counting alike",
    "roc_auc": "chance that a row with a label is ranked above one without it",
    "log_loss": "surprise at the truth; 0 is best, lower is better",
    "calibration_error": "how far claimed probabilities are from what came true; 0 is best",
    "brier": "squared error of the probabilities; 0 is best",
    "bits_per_character": "what a text would take, written down by the model; lower is better, whatever the tokenizer",
    "bits_per_byte": "the same for each byte of UTF-8, of which the plain text takes 8 bits",
    "perplexity": "how many tokens seem equally likely at each place; depends on the tokenizer",
    "loss": "nats for each token; depends on the tokenizer",
}
HEADLINES = tuple(MEANINGS)
PLAIN = frozenset({"roc_auc", "log_loss", "brier", "bits_per_character", "bits_per_byte", "perplexity", "loss"})
"""Figures that are shown as they are; all others are percentages."""

_CALIBRATED = 0.03


def figure(name: str, value: float) -> str:
    """A figure as people write it: 86.5%, or 0.412."""
    return _plain(value) if name in PLAIN else f"{value * 100:.1f}%"


def _plain(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(name: str, metric: Metric) -> str:
    """Its interval in the same unit, or nothing."""
    if metric.low is None or metric.high is None:
        return ""
    if name in PLAIN:
        return f"{_plain(metric.low)} to {_plain(metric.high)}"
    return f"{metric.low * 100:.1f} to {metric.high * 100:.1f}"


def sentences(report: Report) -> list[str]:
    """What the report says, most important first."""
    return [*_accuracy(report), *_weakest(report), *_calibration(report), *_slices(report)]


def _accuracy(report: Report) -> Iterator[str]:
    accuracy = report.metrics["accuracy"]
    rows = f"{report.rows:,} rows" if report.rows != 1 else "one row"
    what = "has all labels right in" if report.details["multi_label"] else "is right in"
    yield (
        f"The model {what} {figure('accuracy', accuracy.value)} of {rows} "
        f"(95% interval {interval('accuracy', accuracy)})."
    )
    baseline = report.details["baseline"]
    label = baseline["label"]
    always = ", ".join(f"“{name}”" for name in ([label] if isinstance(label, str) else label)) or "no label"
    yield f"Always answering {always} would be right in {figure('accuracy', baseline['accuracy'])}."
    if accuracy.value <= baseline["accuracy"] < 1:
        yield "So the model has not learned anything useful yet."


def _weakest(report: Report) -> Iterator[str]:
    present = [entry for entry in report.details["classes"] if entry["support"]]
    if len(present) < 2:
        return
    weakest = min(present, key=lambda entry: entry["f1"]["value"])
    text = f"It is weakest at “{weakest['label']}” (F1 {figure('f1', weakest['f1']['value'])}"
    text += f", {weakest['support']:,} rows)"
    largest = (report.details["confusion"] or {}).get("largest")
    if largest and len(report.details["labels"]) > 2:
        worst = largest[0]
        text += (
            f"; most often it takes “{worst['actual']}” for “{worst['predicted']}” ({worst['rows']:,} "
            f"{'rows' if worst['rows'] != 1 else 'row'})"
        )
    yield text + "."


def _calibration(report: Report) -> Iterator[str]:
    error = report["calibration_error"]
    if error < _CALIBRATED:
        yield "Its probabilities can be taken at their word: what it gives 80% comes true in about 80%."
        return
    bins = report.details["reliability"]
    rows = sum(entry["rows"] for entry in bins)
    excess = sum(entry["rows"] * (entry["claimed"] - entry["came_true"]["value"]) for entry in bins) / rows
    if abs(excess) < error / 2:
        yield f"Its probabilities are off by {error * 100:.1f} points on average, in both directions."
        return
    word, side = ("too sure", "high") if excess > 0 else ("not sure enough", "low")
    yield f"It is {word} of itself: its probabilities are {abs(excess) * 100:.1f} points too {side} on average."


def _slices(report: Report) -> Iterator[str]:
    found = weakest_slices(report, most=1)
    if found:
        column, weak = found[0]
        yield (
            f"Among slices it does worst where {column} is “{weak['value']}”: "
            f"{figure('accuracy', weak['accuracy']['value'])} of {weak['rows']:,} rows."
        )


def weakest_slices(report: Report, most: int) -> list[tuple[str, dict[str, Any]]]:
    """The slices that are surely below the whole (their interval ends under its accuracy), worst first."""
    accuracy = report["accuracy"]
    below = [
        (column, entry)
        for column, group in report.details["slices"].items()
        for entry in group["shown"]
        if entry["accuracy"]["high"] < accuracy
    ]
    return sorted(below, key=lambda pair: pair[1]["accuracy"]["high"])[:most]
