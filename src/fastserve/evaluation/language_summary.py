"""A language model's report in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastserve.evaluation.summary import figure, interval
from fastserve.types import Report

_BITS_OF_A_BYTE = 8


def sentences(report: Report) -> list[str]:
    """What the report says, most important first."""
    return [*_needs(report), *_checks(report), *_slices(report)]


def _needs(report: Report) -> Iterator[str]:
    bits, rows = report.metrics["bits_per_character"], f"{report.rows:,} rows" if report.rows != 1 else "one row"
    yield (
        f"The model needs {figure('bits_per_character', bits.value)} bits for each character of {rows} "
        f"(95% interval {interval('bits_per_character', bits)})."
    )
    per_byte = report["bits_per_byte"]
    if per_byte < _BITS_OF_A_BYTE:
        shorter = _BITS_OF_A_BYTE / max(per_byte, 1e-9)
        yield (
            f"Written down by it, the text would be {shorter:,.1f} times shorter than as UTF-8; at each token it is as "
            f"unsure as among {report['perplexity']:,.1f} equally likely ones."
        )
    else:
        yield "That is more than the plain bytes take: it has not learned anything useful yet."


def _checks(report: Report) -> Iterator[str]:
    for check in report.details["checks"]:
        share = check["share"]
        yield (
            f"{check['name']}: {share['value'] * 100:.1f}% of {check['rows']:,} "
            f"(95% interval {share['low'] * 100:.1f} to {share['high'] * 100:.1f})."
        )


def _slices(report: Report) -> Iterator[str]:
    found = weakest_slices(report, most=1)
    if found:
        column, weak = found[0]
        yield (
            f"Among slices it does worst where {column} is “{weak['value']}”: "
            f"{figure('bits_per_character', weak['bits_per_character']['value'])} bits a character in "
            f"{weak['rows']:,} rows."
        )


def weakest_slices(report: Report, most: int) -> list[tuple[str, dict[str, Any]]]:
    """The slices that surely need more than the whole (their interval begins above its figure), worst first."""
    bits = report["bits_per_character"]
    above = [
        (column, entry)
        for column, group in report.details["slices"].items()
        for entry in group["shown"]
        if entry["rows"] > 1 and entry["bits_per_character"]["low"] > bits
    ]
    return sorted(above, key=lambda pair: -pair[1]["bits_per_character"]["low"])[:most]
