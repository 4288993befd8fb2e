"""Which of two language models needs fewer bits for the same texts, and how sure one can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastserve.errors import DataError
from fastserve.evaluation.bootstrap import Z80, Z95, DoubleArray, percentile_metric, resample_means
from fastserve.evaluation.comparison import SIGNIFICANT, Difference
from fastserve.evaluation.findings import Json, metric_json, shorten
from fastserve.evaluation.needed import Needed, figures
from fastserve.types import LongArray, Metric

_MOST_CHANGED = 10


@dataclass(frozen=True)
class LanguageComparison:
    """Two language models, A and B, on the same documents.

    differences: "bits_per_character" and "bits_per_byte", and where both count the same tokens "loss" and "perplexity";
    less is better. p_value: two-sided, of a difference this large in bits per character were both equally good.
    """

    names: tuple[str, str]
    rows: int
    differences: dict[str, Difference]
    p_value: float
    verdict: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def significant(self) -> bool:
        return self.p_value < SIGNIFICANT

    def to_json(self) -> Json:
        differences = {
            name: {"a": d.a, "b": d.b, "difference": metric_json(d.difference)} for name, d in self.differences.items()
        }
        return {
            "names": list(self.names),
            "rows": self.rows,
            "differences": differences,
            "p_value": self.p_value,
            "verdict": self.verdict,
            "details": self.details,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LanguageComparison:
        differences = {
            name: Difference(d["a"], d["b"], Metric(**d["difference"])) for name, d in value["differences"].items()
        }
        first, second = value["names"]
        return cls(**{**value, "names": (first, second), "differences": differences, "details": dict(value["details"])})


def compare_language(
    a: Needed,
    b: Needed,
    *,
    names: tuple[str, str] = ("A", "B"),
    seed: int = 0,
    resamples: int = 1000,
) -> LanguageComparison:
    """Compare what two models needed (`needed`), which may have cut the documents into different tokens and rows.

    Documents are resampled for both together (paired bootstrap), so that what is hard for both cancels out of the
    difference. DataError where they are not the same documents.
    """
    a, b = _aligned(a, b, names)
    drawn = resample_means(np.hstack([a.totals, b.totals]), resamples, np.random.default_rng(seed))
    here, there = _both(np.hstack([a.totals, b.totals]).mean(0)), _both(drawn)
    same_tokens = np.array_equal(a.totals[:, 1], b.totals[:, 1])
    shown = ["bits_per_character", "bits_per_byte", *(["loss", "perplexity"] if same_tokens else [])]
    differences = {name: _difference(here, there, name) for name in shown}
    gaps = there[1]["bits_per_character"] - there[0]["bits_per_character"]
    p_value = _p_value(differences["bits_per_character"].difference.value, float(gaps.std()), len(a))
    verdict = _verdict(names, len(a), differences["bits_per_character"], float(gaps.std()), p_value)
    return LanguageComparison(names, len(a), differences, p_value, verdict, {"changed": _changed(a, b)})


def _aligned(a: Needed, b: Needed, names: tuple[str, str]) -> tuple[Needed, Needed]:
    """The same documents in both, in the same order; or the same pieces of them, where there are few documents."""
    first, second = _by_row(a), _by_row(b)
    if not np.array_equal(first.rows, second.rows):
        odd = np.setxor1d(first.rows, second.rows)
        raise DataError(
            f"{names[0]} and {names[1]} were judged on different rows (row {odd[0]} is one of {len(odd)} that only one "
            "of them has): evaluate both on the same file"
        )
    differs = np.flatnonzero((first.totals[:, 2:] != second.totals[:, 2:]).any(1))
    if len(differs):
        row = differs[0]
        raise DataError(
            f"row {first.rows[row]} counts {first.totals[row, 2]:.0f} characters for {names[0]} and "
            f"{second.totals[row, 2]:.0f} for {names[1]}: evaluate both on the same texts, with the same part of them "
            "counted"
        )
    same_pieces = np.array_equal(a.rows, b.rows) and np.array_equal(a.totals[:, 1:], b.totals[:, 1:])
    return (a.documents(), b.documents()) if same_pieces else (first, second)


def _by_row(judged: Needed) -> Needed:
    _, first, document = np.unique(judged.rows, return_index=True, return_inverse=True)
    return judged.together(document, first)


def _both(totals: DoubleArray) -> tuple[dict[str, DoubleArray], dict[str, DoubleArray]]:
    """Figures of A and of B from their totals (8, ...)."""
    return figures(totals[:4]), figures(totals[4:])


def _difference(
    here: tuple[dict[str, DoubleArray], ...], there: tuple[dict[str, DoubleArray], ...], name: str
) -> Difference:
    a, b = float(here[0][name]), float(here[1][name])
    gap = percentile_metric(b - a, there[1][name] - there[0][name], lowest=-np.inf, highest=np.inf)
    return Difference(a, b, gap)


def _p_value(gap: float, spread: float, rows: int) -> float:
    """Two-sided, from the normal distribution that a mean over many documents follows; one document tells nothing."""
    if rows == 1:
        return 1.0
    if spread == 0:
        return 1.0 if gap == 0 else 0.0
    return math.erfc(abs(gap) / spread / math.sqrt(2))


def _verdict(names: tuple[str, str], rows: int, found: Difference, spread: float, p_value: float) -> str:
    gap = found.difference
    if p_value < SIGNIFICANT:
        better, worse = names[::-1] if gap.value < 0 else names
        low, high = sorted(abs(end or 0.0) for end in (gap.low, gap.high))
        shown = f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"
        share = abs(gap.value) / max(found.a, found.b) * 100
        return (
            f"{better} is better than {worse}: it needs {abs(gap.value):.3f} bits a character less [{low:.3f}, "
            f"{high:.3f}], {share:.1f}% of what {worse} needs, {shown}"
        )
    a, b = names
    if gap.value == 0:
        return f"{a} and {b} need the same for these {rows:,} rows"
    if rows == 1:
        return f"No difference between {a} and {b} can be told from one row: evaluate on a hundred at least"
    needed_rows = math.ceil(rows * ((Z95 + Z80) * spread / gap.value) ** 2)
    return (
        f"No difference between {a} and {b} can be told from these {rows:,} rows; about {needed_rows:,} rows would be "
        f"needed to be sure of the {abs(gap.value):.3f} bits a character seen here"
    )


def _changed(a: Needed, b: Needed) -> dict[str, list[Json]]:
    """The documents whose bits per character fell and rose most."""
    change = b.bits_per_character - a.bits_per_character
    order = np.argsort(change, kind="stable")
    fell, rose = order[:_MOST_CHANGED], order[::-1][:_MOST_CHANGED]
    return {"better": _entries(a, b, fell[change[fell] < 0]), "worse": _entries(a, b, rose[change[rose] > 0])}


def _entries(a: Needed, b: Needed, chosen: LongArray) -> list[Json]:
    entries = []
    for index in chosen.tolist():
        entry = {
            "row": int(a.rows[index]),
            "a": float(a.bits_per_character[index]),
            "b": float(b.bits_per_character[index]),
        }
        text = a.text(index)
        entries.append(entry if text is None else {**entry, "text": shorten(text)})
    return entries
