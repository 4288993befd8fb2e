"""Reports and comparisons as plain text for a terminal, aligned also where labels are Chinese."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from fastserve.evaluation import language_summary
from fastserve.evaluation.comparison import Comparison
from fastserve.evaluation.language_comparison import LanguageComparison
from fastserve.evaluation.summary import HEADLINES, TITLES, figure, interval, sentences, weakest_slices
from fastserve.types import Report

_MOST_LABELS = 20
_MOST_SLICES = 5
_MOST_SAMPLES = 5
_LABEL_WIDTH = 32


def report_text(report: Report) -> str:
    """For a report of `evaluate_classification`, `evaluate_language` or `evaluate_masked`.

    A summary, the headline figures with intervals, figures by label, the weakest slices, samples, and notes.
    """
    blocks = {"generation": _language_blocks, "masked": _masked_blocks}.get(report.task, _label_blocks)(report)
    return _joined([*blocks, [f"Note: {note}" for note in report.details["notes"]]])


def _label_blocks(report: Report) -> list[list[str]]:
    return [sentences(report), list(_headlines(report)), list(_labels(report)), list(_slices(report))]


def _masked_blocks(report: Report) -> list[list[str]]:
    return [
        [f"{report.details['tokens']:,} hidden tokens of {report.rows:,} texts are to be said."],
        list(_headlines(report)),
    ]


def _language_blocks(report: Report) -> list[list[str]]:
    samples = [
        [f"prompt: {sample['prompt']}", *sample["text"].splitlines()]
        for sample in report.details["samples"][:_MOST_SAMPLES]
    ]
    return [
        language_summary.sentences(report),
        list(_headlines(report)),
        list(_checks(report)),
        list(_language_slices(report)),
        *samples,
    ]


def _joined(blocks: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(map(printable, block)) for block in blocks if block) + "\n"


def comparison_text(comparison: Comparison | LanguageComparison) -> str:
    """The verdict, both models' figures, and how many rows changed."""
    if isinstance(comparison, LanguageComparison):
        return _joined([[comparison.verdict], list(_table(_language_differences(comparison)))])
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
    return _joined([[comparison.verdict], list(_table(rows)), [changed]])


def _language_differences(comparison: LanguageComparison) -> list[list[str]]:
    a, b = comparison.names
    rows = [["(less is better)", a, b, f"{b} - {a}", "95% interval"]]
    for name, found in comparison.differences.items():
        gap = found.difference
        span = f"{gap.low:+.3f} to {gap.high:+.3f}"
        rows.append([TITLES[name], figure(name, found.a), figure(name, found.b), f"{gap.value:+.3f}", span])
    return rows


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


def _checks(report: Report) -> Iterator[str]:
    rows = [["check", "rows", "passed", "95% interval"]]
    for check in report.details["checks"]:
        share = check["share"]
        span = f"{share['low'] * 100:.1f} to {share['high'] * 100:.1f}"
        rows.append([_cut(check["name"]), f"{check['rows']:,}", f"{share['value'] * 100:.1f}%", span])
    return _table(rows) if len(rows) > 1 else iter(())


def _language_slices(report: Report) -> Iterator[str]:
    rows = [["weakest slices", "rows", "bits per character", "95% interval"]]
    for column, entry in language_summary.weakest_slices(report, _MOST_SLICES):
        bits = entry["bits_per_character"]
        span = f"{bits['low']:.3f} to {bits['high']:.3f}"
        rows.append([_cut(f"{column} = {entry['value']}"), f"{entry['rows']:,}", f"{bits['value']:.3f}", span])
    return _table(rows) if len(rows) > 1 else iter(())


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
