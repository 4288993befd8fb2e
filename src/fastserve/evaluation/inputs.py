"""What a model said about rows whose answers are known, checked once so that nothing after it has to doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import DataError, WorkError
from fastserve.types import FloatArray, LongArray

BoolArray = npt.NDArray[np.bool_]
_ROW_SUM_TOLERANCE = 0.02


@dataclass(frozen=True)
class Judged:
    """Known answers beside a model's probabilities. Made by `judge`, which checks it.

    targets: int64 (N,) label indices, or (N, C) of 0 and 1 where a row may have several labels;
    probabilities: float32 (N, C); texts: N or none; rows: int64 (N,), the rows' numbers in the user's file.
    """

    targets: LongArray
    probabilities: FloatArray
    labels: tuple[str, ...]
    texts: Sequence[str] | None
    rows: LongArray
    threshold: float

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2

    @property
    def binary(self) -> bool:
        """Two labels of which a row has one; the second counts as the positive one."""
        return not self.multi_label and len(self.labels) == 2

    @cached_property
    def predicted(self) -> LongArray:
        """The model's answers, in the form of `targets`."""
        if self.multi_label:
            return np.asarray(self.probabilities >= self.threshold, np.int64)
        return np.asarray(self.probabilities.argmax(1), np.int64)

    @cached_property
    def correct(self) -> BoolArray:
        """(N,): whether all of a row's labels are right."""
        same = self.targets == self.predicted
        return np.asarray(same.all(1) if self.multi_label else same)

    @cached_property
    def actual(self) -> BoolArray:
        """(N, C): which labels each row has."""
        if self.multi_label:
            return self.targets.astype(bool)
        return np.asarray(self.targets[:, None] == np.arange(len(self.labels)))

    def names(self, answers: LongArray, row: int) -> str | list[str]:
        """The label (or labels) of one row of `targets` or `predicted`, in words."""
        if self.multi_label:
            return [self.labels[index] for index in np.flatnonzero(answers[row])]
        return self.labels[int(answers[row])]


def judge(
    targets: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    rows: Sequence[int] | LongArray | None = None,
    threshold: float = 0.5,
) -> Judged:
    """Check shapes and values. DataError for wrong answers, WorkError for probabilities that no sound model gives."""
    targets, probabilities = np.asarray(targets), np.asarray(probabilities)
    _check_shapes(targets, probabilities, labels)
    _check_targets(targets, labels)
    numbers = np.arange(1, len(targets) + 1) if rows is None else np.asarray(rows, np.int64)
    for name, values in (("texts", texts), ("rows", numbers)):
        if values is not None and len(values) != len(targets):
            raise DataError(
                f"evaluation got {len(targets)} answers but {len(values)} {name}: expected one for each row"
            )
    _check_probabilities(probabilities, labels, numbers, sums=targets.ndim == 1)
    return Judged(targets.astype(np.int64), probabilities.astype(np.float32), tuple(labels), texts, numbers, threshold)


def _check_shapes(targets: npt.NDArray[Any], probabilities: npt.NDArray[Any], labels: Sequence[str]) -> None:
    if len(targets) == 0:
        raise DataError("there are no rows to evaluate on: give a file with at least one labelled row")
    if probabilities.shape != (len(targets), len(labels)):
        raise DataError(
            f"probabilities have the shape {probabilities.shape}, expected {(len(targets), len(labels))}: "
            f"one row for each of the {len(targets)} answers, one column for each of the {len(labels)} labels"
        )
    if targets.ndim not in (1, 2) or (targets.ndim == 2 and targets.shape != probabilities.shape):
        raise DataError(
            f"answers have the shape {targets.shape}, expected ({len(targets)},) of label indices or "
            f"{probabilities.shape} of 0 and 1"
        )


def _check_targets(targets: npt.NDArray[Any], labels: Sequence[str]) -> None:
    most = len(labels) - 1 if targets.ndim == 1 else 1
    if not np.issubdtype(targets.dtype, np.integer) and not np.isin(targets, np.arange(most + 1)).all():
        raise DataError("answers must be whole numbers: label indices, or 0 and 1 where a row has several labels")
    if targets.min() < 0 or targets.max() > most:
        raise DataError(
            f"answers lie between {targets.min()} and {targets.max()}, expected 0 to {most} ({len(labels)} labels)"
        )


def _check_probabilities(
    probabilities: npt.NDArray[Any], labels: Sequence[str], rows: LongArray, *, sums: bool
) -> None:
    bad = ~np.isfinite(probabilities)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise WorkError(
            f"the model gave {probabilities[row, column]} as the probability of '{labels[column]}' in row {rows[row]} "
            f"({int(bad.any(1).sum())} rows of {len(rows)} are affected): its weights are damaged or its training "
            "diverged; train again with a lower train.learning_rate"
        )
    if probabilities.min() < -1e-3 or probabilities.max() > 1 + 1e-3:
        raise WorkError(
            f"probabilities lie between {probabilities.min():.3g} and {probabilities.max():.3g}, expected 0 to 1: "
            "apply softmax (or sigmoid where a row has several labels) to the network's output first"
        )
    gaps = np.abs(probabilities.sum(1, dtype=np.float64) - 1)
    if sums and gaps.max() > _ROW_SUM_TOLERANCE:
        row = int(gaps.argmax())
        raise WorkError(
            f"the probabilities of row {rows[row]} add up to {probabilities[row].sum():.3g}, expected 1: "
            "apply softmax to the network's output first"
        )
