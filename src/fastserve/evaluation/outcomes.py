"""Rows counted by outcome, and every figure that follows from the counts alone.

An outcome is a pair (actual labels, predicted labels). Accuracy, precision, recall and F1 need nothing else, so the
same functions serve the data as it is (one column of counts) and a thousand resamples of it (a thousand columns).
They follow scikit-learn's definitions, undefined ratios being 0; the tests hold them to it, resample by resample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.evaluation.bootstrap import DoubleArray
from fastserve.evaluation.inputs import BoolArray, Judged
from fastserve.types import LongArray

_FEW_LABELS = 50
"""Up to here one dense product beats gathering and adding (12,000 outcomes, 15 labels: 10 times)."""


@dataclass(frozen=True)
class Marks:
    """Which outcomes carry which label: outcome `outcomes[i]` has label `labels[i]`; sorted by label."""

    outcomes: LongArray
    labels: LongArray

    @classmethod
    def sort(cls, outcomes: LongArray, labels: LongArray) -> Marks:
        """From one label an outcome, in any order."""
        order = np.argsort(labels, kind="stable")
        return cls(outcomes[order], labels[order])

    @classmethod
    def of(cls, table: BoolArray) -> Marks:
        """From a table (G, C)."""
        labels, outcomes = np.nonzero(table.T)
        return cls(outcomes, labels)

    def totals(self, counts: LongArray, num_labels: int) -> LongArray:
        """How many rows carry each label: counts (G, R) to (C, R)."""
        if num_labels <= _FEW_LABELS:
            table = np.zeros((num_labels, len(counts)))
            table[self.labels, self.outcomes] = 1
            return (table @ counts.astype(np.float64)).astype(np.int64)  # exact: whole numbers below 2**53
        return self.totals_by_label(counts, num_labels)

    def totals_by_label(self, counts: LongArray, num_labels: int) -> LongArray:
        """The same, in time that does not grow with labels that an outcome does not have."""
        sums = np.zeros((num_labels, counts.shape[1]), counts.dtype)
        if len(self.labels):
            present, starts = np.unique(self.labels, return_index=True)
            sums[present] = np.add.reduceat(counts[self.outcomes], starts, axis=0)
        return sums


@dataclass(frozen=True)
class Outcomes:
    """The distinct outcomes of some rows. counts: int64 (G,), how many rows had each; correct: bool (G,)."""

    counts: LongArray
    correct: BoolArray
    actual: Marks
    predicted: Marks
    hits: Marks
    num_labels: int
    multi_label: bool

    @classmethod
    def of(cls, judged: Judged, rows: LongArray | None = None) -> Outcomes:
        """The outcomes of all rows, or of those chosen (row indices)."""
        chosen = np.arange(len(judged)) if rows is None else rows
        first, counts = distinct(judged.targets[chosen], judged.predicted[chosen])
        return cls.at(judged, chosen[first], counts)

    @classmethod
    def at(cls, judged: Judged, examples: LongArray, counts: LongArray) -> Outcomes:
        """From one example row of each outcome (G,) and how many rows share it (G,)."""
        targets, predicted = judged.targets[examples], judged.predicted[examples]
        if judged.multi_label:
            actual, guessed = targets.astype(bool), predicted.astype(bool)
            marks = (Marks.of(actual), Marks.of(guessed), Marks.of(actual & guessed))
        else:
            right = np.flatnonzero(targets == predicted)
            everything = np.arange(len(examples))
            marks = (
                Marks.sort(everything, targets),
                Marks.sort(everything, predicted),
                Marks.sort(right, targets[right]),
            )
        return cls(counts, judged.correct[examples], *marks, len(judged.labels), judged.multi_label)

    def rates(self, counts: LongArray | None = None) -> Rates:
        """The figures for `counts` (G, R) of these outcomes; by default for the rows themselves (R = 1)."""
        counts = self.counts[:, None] if counts is None else counts
        return Rates(
            accuracy=counts[self.correct].sum(0) / counts.sum(0),
            hits=self.hits.totals(counts, self.num_labels),
            support=self.actual.totals(counts, self.num_labels),
            predicted=self.predicted.totals(counts, self.num_labels),
            multi_label=self.multi_label,
        )


def distinct(*answers: LongArray) -> tuple[LongArray, LongArray]:
    """Rows that agree in all of `answers`, (N,) or (N, C) of 0 and 1 each: a row index and the number of each kind."""
    keys: npt.NDArray[Any]
    if answers[0].ndim == 2:
        keys = np.packbits(np.hstack(answers).astype(bool), axis=1)
    else:
        keys = answers[0]
        for more in answers[1:]:
            keys = keys * (int(more.max()) + 1) + more
    _, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    return first.astype(np.int64), counts.astype(np.int64)


@dataclass(frozen=True)
class Rates:
    """accuracy: (R,); hits (true positives), support (rows that have the label) and predicted: int64 (C, R)."""

    accuracy: DoubleArray
    hits: LongArray
    support: LongArray
    predicted: LongArray
    multi_label: bool

    @property
    def precision(self) -> DoubleArray:
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> DoubleArray:
        return _ratio(self.hits, self.support)

    @property
    def f1(self) -> DoubleArray:
        return _ratio(2 * self.hits, self.predicted + self.support)

    def macro(self, per_label: DoubleArray) -> DoubleArray:
        """Plain mean over labels (C, R) -> (R,); labels that neither occur nor are predicted do not count."""
        present = (self.support + self.predicted > 0) | self.multi_label
        return _ratio((per_label * present).sum(0), present.sum(0))

    def weighted(self, per_label: DoubleArray) -> DoubleArray:
        """Mean over labels weighted by their number of rows: (C, R) -> (R,)."""
        return _ratio((per_label * self.support).sum(0), self.support.sum(0))

    def averages(self) -> dict[str, DoubleArray]:
        """Every headline figure by name: (R,) each."""
        hits, predicted, support = self.hits.sum(0), self.predicted.sum(0), self.support.sum(0)
        micro = {
            "precision": _ratio(hits, predicted),
            "recall": _ratio(hits, support),
            "f1": _ratio(2 * hits, predicted + support),
        }
        figures = {"accuracy": self.accuracy}
        for name, per_label in (("precision", self.precision), ("recall", self.recall), ("f1", self.f1)):
            figures[f"{name}_macro"] = self.macro(per_label)
            figures[f"{name}_micro"] = micro[name]
            figures[f"{name}_weighted"] = self.weighted(per_label)
        return figures


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> DoubleArray:
    result = np.zeros(np.shape(part))
    np.divide(part, whole, out=result, where=whole > 0)
    return result
