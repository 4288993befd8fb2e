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


@dataclass(frozen=True)
class Marks:
    """Which outcomes carry which label: outcome `outcomes[i]` has label `labels[i]`; sorted by label."""

    outcomes: LongArray
    labels: LongArray

    @classmethod
    def of(cls, table: BoolArray) -> Marks:
        """From a table (G, C)."""
        labels, outcomes = np.nonzero(table.T)
        return cls(outcomes, labels)

    def totals(self, counts: LongArray, num_labels: int) -> LongArray:
        """How many rows carry each label: counts (G, R) to (C, R)."""
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
    def of(cls, judged: Judged, rows: npt.NDArray[np.integer[Any]] | slice = slice(None)) -> Outcomes:
        """The outcomes of all rows, or of those chosen."""
        targets, predicted = judged.targets[rows], judged.predicted[rows]
        num_labels = len(judged.labels)
        if judged.multi_label:
            packed = np.packbits(np.hstack([targets, predicted]).astype(bool), axis=1)
            _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
            actual, guessed = targets[first].astype(bool), predicted[first].astype(bool)
            marks = (Marks.of(actual), Marks.of(guessed), Marks.of(actual & guessed))
            correct = (actual == guessed).all(1)
        else:
            cells, counts = np.unique(targets * num_labels + predicted, return_counts=True)
            first_label, second_label = cells // num_labels, cells % num_labels
            correct = first_label == second_label
            right = np.flatnonzero(correct)
            marks = (_single(first_label), _single(second_label), Marks(right, first_label[right]))
        return cls(counts.astype(np.int64), correct, *marks, num_labels, judged.multi_label)

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


def _single(labels: LongArray) -> Marks:
    order = np.argsort(labels, kind="stable")
    return Marks(order, labels[order])


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
