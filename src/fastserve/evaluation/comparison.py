"""Which of two models is better on the same rows, and how sure one can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.evaluation.bootstrap import (
    Z80,
    Z95,
    DoubleArray,
    percentile_metric,
    percentile_metrics,
    resample_counts,
)
from fastserve.evaluation.findings import Json, metric_json, shorten
from fastserve.evaluation.inputs import Judged, judge
from fastserve.evaluation.outcomes import Outcomes, Rates, distinct
from fastserve.types import LongArray, Metric

SIGNIFICANT = 0.05
_MOST_CHANGED = 20


@dataclass(frozen=True)
class Difference:
    """One figure of both models, and B's minus A's with its 95 % interval."""

    a: float
    b: float
    difference: Metric


@dataclass(frozen=True)
class Comparison:
    """Two models, A and B, judged on the same rows.

    differences: "accuracy" and "f1_macro"; only_a, only_b: how many rows only that model has right; p_value: of the
    exact McNemar test, whether such a split could be chance; details: figures by label, and the rows that changed.
    """

    names: tuple[str, str]
    rows: int
    differences: dict[str, Difference]
    only_a: int
    only_b: int
    p_value: float
    verdict: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def significant(self) -> bool:
        return self.p_value < SIGNIFICANT

    def to_json(self) -> dict[str, Any]:
        differences = {
            name: {"a": d.a, "b": d.b, "difference": metric_json(d.difference)} for name, d in self.differences.items()
        }
        return {
            "names": list(self.names),
            "rows": self.rows,
            "differences": differences,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "p_value": self.p_value,
            "verdict": self.verdict,
            "details": self.details,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Comparison:
        differences = {
            name: Difference(d["a"], d["b"], Metric(**d["difference"])) for name, d in value["differences"].items()
        }
        first, second = value["names"]
        return cls(**{**value, "names": (first, second), "differences": differences, "details": dict(value["details"])})


def compare(
    targets: npt.NDArray[Any],
    probabilities_a: npt.NDArray[Any],
    probabilities_b: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    names: tuple[str, str] = ("A", "B"),
    texts: Sequence[str] | None = None,
    rows: Sequence[int] | LongArray | None = None,
    threshold: float = 0.5,
    seed: int = 0,
    resamples: int = 1000,
) -> Comparison:
    """Compare two models' probabilities for the same rows; arguments as in `evaluate_classification`.

    Rows are resampled for both models together, so that what is hard for both cancels out of the difference.
    """
    a = judge(targets, probabilities_a, labels, texts=texts, rows=rows, threshold=threshold)
    b = judge(targets, probabilities_b, labels, texts=texts, rows=rows, threshold=threshold)
    examples, counts = distinct(a.targets, a.predicted, b.predicted)
    drawn = resample_counts(counts, resamples, np.random.default_rng(seed))
    side_a, side_b = (Outcomes.at(judged, examples, counts) for judged in (a, b))
    here, there = (side_a.rates(), side_b.rates()), (side_a.rates(drawn), side_b.rates(drawn))
    differences = {
        "accuracy": _difference([rates.accuracy for rates in (*here, *there)]),
        "f1_macro": _difference([rates.macro(rates.f1) for rates in (*here, *there)]),
    }
    only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    p_value = mcnemar(only_a, only_b)
    verdict = _verdict(names, len(a), differences["accuracy"].difference, only_a + only_b, p_value)
    details = {"classes": _classes(a.labels, here, there), "changed": _changed(a, b)}
    return Comparison(names, len(a), differences, only_a, only_b, p_value, verdict, details)


def _difference(figures: Sequence[DoubleArray]) -> Difference:
    """From a figure of A and B as they are (1,) each, and resampled (R,) each."""
    a, b, drawn_a, drawn_b = figures
    return Difference(float(a[0]), float(b[0]), percentile_metric(float(b[0] - a[0]), drawn_b - drawn_a, lowest=-1.0))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value: how likely so uneven a split is of the rows that one model alone has right.

    Were both models equally good, each such row would be a fair coin (McNemar 1947).
    """
    rows, fewer = only_a + only_b, min(only_a, only_b)
    if only_a == only_b:
        return 1.0
    taken = np.arange(fewer)
    log_ways = np.append(0.0, np.cumsum(np.log((rows - taken) / (taken + 1))))  # log of rows over k, k = 0 to fewer
    most = float(log_ways.max())
    log_tail = most + math.log(float(np.exp(log_ways - most).sum())) - rows * math.log(2)
    return min(1.0, 2 * math.exp(log_tail))


def rows_needed(difference: float, disagreement: float) -> int:
    """How many rows a test needs to find `difference` in accuracy four times in five.

    disagreement: the share of rows that one model alone has right. Connor (1987), "Sample size for testing differences
    in proportions for the paired-sample design".
    """
    spread = max(disagreement - difference**2, 0.0)
    return math.ceil(((Z95 * math.sqrt(disagreement) + Z80 * math.sqrt(spread)) / difference) ** 2)


def _verdict(names: tuple[str, str], rows: int, difference: Metric, disagreeing: int, p_value: float) -> str:
    if p_value < SIGNIFICANT:
        return _better(names, difference, p_value)
    a, b = names
    if disagreeing == 0:
        return f"{a} and {b} are right and wrong in the same rows: no difference can be told from these {rows:,} rows"
    seen = abs(difference.value)
    needed = rows_needed(seen or 0.01, disagreeing / rows)
    size = f"the {seen * 100:.1f} points seen here" if seen else "a difference of 1 point"
    return (
        f"No difference between {a} and {b} can be told from these {rows:,} rows; "
        f"about {needed:,} rows would be needed to be sure of {size}"
    )


def _better(names: tuple[str, str], difference: Metric, p_value: float) -> str:
    sign = 1 if difference.value > 0 else -1
    better, worse = names[::-1] if sign > 0 else names
    low, high = sorted(sign * 100 * (end or 0.0) for end in (difference.low, difference.high))
    shown = f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"
    return (
        f"{better} is better than {worse} by {abs(difference.value) * 100:.1f} points [{low:.1f}, {high:.1f}], {shown}"
    )


def _classes(labels: Sequence[str], here: tuple[Rates, Rates], drawn: tuple[Rates, Rates]) -> list[Json]:
    f1_a, f1_b = here[0].f1[:, 0], here[1].f1[:, 0]
    differences = percentile_metrics(f1_b - f1_a, drawn[1].f1 - drawn[0].f1)
    support = here[0].support[:, 0]
    return [
        {
            "label": label,
            "support": int(rows),
            "f1_a": float(a),
            "f1_b": float(b),
            "difference": metric_json(difference),
        }
        for label, rows, a, b, difference in zip(labels, support, f1_a, f1_b, differences, strict=True)
    ]


def _changed(a: Judged, b: Judged) -> dict[str, Json]:
    """The rows that B answers otherwise than A: mended, broken, or wrong in another way; the clearest changes first."""
    differs = a.predicted != b.predicted
    changed = differs.any(1) if a.multi_label else differs
    kinds = {
        "mended": b.correct & ~a.correct,
        "broken": a.correct & ~b.correct,
        "still_wrong": changed & ~a.correct & ~b.correct,
    }
    shift = np.abs(b.probabilities - a.probabilities).max(1)
    found = {}
    for kind, mask in kinds.items():
        indices = np.flatnonzero(mask)
        clearest = indices[np.argsort(-shift[indices], kind="stable")[:_MOST_CHANGED]]
        found[kind] = {"rows": len(indices), "shown": [_change(a, b, int(index)) for index in clearest]}
    return found


def _change(a: Judged, b: Judged, index: int) -> Json:
    change: Json = {
        "row": int(a.rows[index]),
        "actual": a.names(a.targets, index),
        "a": a.names(a.predicted, index),
        "b": b.names(b.predicted, index),
        "score_a": float(a.probabilities[index].max()),
        "score_b": float(b.probabilities[index].max()),
    }
    if a.texts is not None:
        change["text"] = shorten(a.texts[index])
    return change
