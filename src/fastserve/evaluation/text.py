"""Reports and comparisons as plain text for a terminal, aligned also where labels are Chinese."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from fastserve.evaluation.comparison import Comparison
from fastserve.evaluation.summary import HEADLINES, TITLES, figure, interval, sentences, weakest_slices
from fastserve.types import Report

_MOST_LABELS = 20
_MOST_SLICES = 5
_LABEL_WIDTH = 32


def report_text(report: Report) -> str:
    """For a report of `evaluate_classification`.

    A summary, the headline figures with intervals, figures by label, the weakest slices, and notes.
    """
    blocks = [
        sentences(report),
        list(_headlines(report)),
        list(_labels(report)),
        list(_slices(report)),
        [f"Note: {note}" for note in report.details["notes"]],
    ]
    return "\n\n".join("\n".join(map(printable, block)) for block in blocks if block) + "\n"


def comparison_text(comparison: Comparison) -> str:
    """The verdict, both models' figures, and how many rows changed."""
    a, b = comparison.names
    rows = [["", a, b, f"{b} - {a}", "95% interval"]]
    for name, found in comparison.differences.items():
        gap = found.difference
        low, high = (100 * (end or 0.0) for end in (gap.low, gap.high))
        points = f"{gap.value * 100:+.1f}"
        rows.append([TITLES[name], figure(name, found.a), figure(name, found.b), points, f"{low:+.1f} to {high:+.1f}"])
    changed = (
        f"only {a} is right in {comparison.only_a:,} rows, only {b} in {comparison.only_b:,} "
        f"(exact McNemar test, p = {comparison.p_value:.3g})"
    )
    blocks = [[comparison.verdict], list(_table(rows)), [changed]]
    return "\n\n".join("\n".join(map(printable, block)) for block in blocks) + "\n"


def _headlines(report: Report) -> Iterator[str]:
    rows = [["", "value", "95% interval"]]
    for name in HEADLINES:
        if name in report.metrics:
            metric = report.metrics[name]
            rows.append([TITLES[name], figure(name, metric.value), interval(name, metric)])
    return _table(rows)


def _labels(report: Report) -> Iterator[str]:
    classes = report.details["classes"]
    shown = sorted(classes, key=_f1)[:_MOST_LABELS] if len(classes) > _MOST_LABELS else classes
    rows = [["label", "rows", "precision", "recall", "F1", "95% interval"]]
    for entry in shown:
        values = [figure("f1", entry[name]["value"]) for name in ("precision", "recall", "f1")]
        low, high = entry["f1"]["low"] * 100, entry["f1"]["high"] * 100
        rows.append([_cut(entry["label"]), f"{entry['support']:,}", *values, f"{low:.1f} to {high:.1f}"])
    yield from _table(rows)
    if len(shown) < len(classes):
        yield f"(the {len(shown)} weakest of {len(classes)} labels)"


def _f1(entry: dict[str, Any]) -> float:
    return float(entry["f1"]["value"])


def _slices(report: Report) -> Iterator[str]:
    found = weakest_slices(report, _MOST_SLICES)
    if not found:
        return
    rows = [["weakest slices", "rows", "accuracy", "95% interval"]]
    for column, entry in found:
        accuracy = entry["accuracy"]
        span = f"{accuracy['low'] * 100:.1f} to {accuracy['high'] * 100:.1f}"
        name = _cut(f"{column} = {entry['value']}")
        rows.append([name, f"{entry['rows']:,}", figure("accuracy", accuracy["value"]), span])
    yield from _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns two spaces apart, the first to the left and the others to the right."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first = row[0] + " " * (widths[0] - width(row[0]))
        others = [" " * (most - width(cell)) + cell for cell, most in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([first, *others]).rstrip()


def width(text: str) -> int:
    """Columns that `text` takes in a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def printable(text: str) -> str:
    """Without control characters, which could command the terminal."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)


def _cut(label: str) -> str:
    while width(label) > _LABEL_WIDTH:
        label = label[:-2] + "…"
    return label
