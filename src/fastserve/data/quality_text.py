"""The quality report in plain words for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastserve.data.quality import Finding, QualityReport

_SHOWN = 5
_BAR = 40
_LABELS = 20


def render(report: QualityReport) -> str:
    return "\n".join(_lines(report))


def _lines(report: QualityReport) -> Iterator[str]:
    bad = report.bad_rows
    yield f"{report.name}: {report.rows:,} usable rows, {bad['total']:,} bad rows"
    if report.language:
        yield f"language: {report.language}"
    yield ""
    yield from _bad_rows(report)
    yield from _labels(report.labels)
    yield from _lengths(report)
    yield from _finding("repeated texts (rows beyond the first)", report.duplicates, report.rows)
    yield from _finding("texts with contradicting labels", report.contradictions, report.rows)
    yield from _finding(f"near duplicates (among {report.near_rows:,} texts)", report.near_duplicates, report.rows)
    if report.leakage is not None:
        yield from _finding("texts that the other data has too", report.leakage, report.rows)
    if report.near_leakage is not None:
        yield from _finding("texts that the other data nearly has", report.near_leakage, report.rows)
    for kind, finding in report.damage.items():
        yield from _finding(f"texts with {kind}", finding, report.rows)
    if not report.damage:
        yield "damaged encoding: none found"


def _bad_rows(report: QualityReport) -> Iterator[str]:
    for reason, count in report.bad_rows["reasons"].items():
        yield f"bad rows, {reason}: {count:,}"
        of_reason = [row for row in report.bad_rows["listed"] if row["reason"] == reason]
        for row in of_reason[:_SHOWN]:
            yield f"    row {row['row']}: {row['detail']}".rstrip(": ")
    if report.bad_rows["total"]:
        yield ""


def _labels(labels: dict[str, int]) -> Iterator[str]:
    if not labels:
        return
    total, most = sum(labels.values()), max(labels.values())
    yield f"labels: {len(labels)}, the most frequent has {most / max(min(labels.values()), 1):.1f} times the rarest"
    width = max(len(label) for label in list(labels)[:_LABELS])
    for label, count in list(labels.items())[:_LABELS]:
        yield f"    {label:{width}}  {count:>9,}  {count / total:6.1%}  {_bar(count, most)}"
    if len(labels) > _LABELS:
        yield f"    and {len(labels) - _LABELS} more"
    yield ""


def _lengths(report: QualityReport) -> Iterator[str]:
    named = ", ".join(f"{value:,} at {name} %" for name, value in report.lengths.items())
    yield f"characters in a text: {named}"
    most = max(count for _, _, count in report.histogram)
    for low, high, count in report.histogram:
        if count:
            yield f"    {low:>7,} to {high - 1:>7,}  {count:>9,}  {_bar(count, most)}"
    yield ""


def _bar(count: int, most: int) -> str:
    return "#" * max(1, round(_BAR * count / most)) if count else ""


def _finding(what: str, finding: Finding, rows: int) -> Iterator[str]:
    share = finding.count / max(rows, 1)
    shown = f" ({'under 0.01%' if share < 1e-4 else f'{share:.2%}'})" if finding.count else ""
    yield f"{what}: {finding.count:,}{shown}"
    for example in finding.examples[:_SHOWN]:
        lines = ", ".join(map(str, example["rows"]))
        yield f"    row {lines}" + (f"  {example['note']}" if example["note"] else "")
