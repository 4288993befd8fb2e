"""One pass over a data set that remembers a few numbers for each row: enough to split it and to find what is in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.data.blocks import Block
from fastserve.data.dataset import Dataset
from fastserve.data.keys import same_forms, text_keys
from fastserve.device import give_back_freed_memory
from fastserve.errors import DataError
from fastserve.types import LongArray

_MANY = 1000


@dataclass(frozen=True)
class Index:
    """keys: int64 (N,), equal for equal texts. kinds: (N,), which of `label_sets` a row has, as small as that goes.

    rows: uint32 (N,), lines in the file.
    """

    keys: LongArray
    kinds: npt.NDArray[np.integer[Any]]
    rows: npt.NDArray[np.uint32]
    label_sets: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def label_counts(self) -> dict[str, int]:
        """Rows of each label, in the order in which labels are listed everywhere."""
        return self.counts_of(np.ones(len(self), bool))

    def counts_of(self, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Rows of each label among the chosen."""
        counts = np.bincount(self.kinds[chosen], minlength=len(self.label_sets))
        found: Counter[str] = Counter({label: 0 for labels in self.label_sets for label in labels})
        for labels, count in zip(self.label_sets, counts.tolist(), strict=True):
            found.update(dict.fromkeys(labels, count))
        return {label: found[label] for label in sort_labels(found)}


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Whole numbers by value, before words in the order of their characters."""
    return sorted(
        labels, key=lambda label: (0, int(label), "") if re.fullmatch(r"-?\d{1,18}", label) else (1, 0, label)
    )


def index_rows(dataset: Dataset) -> Index:
    """Read the data set once."""
    kinds: dict[tuple[str, ...], int] = {}
    parts: list[list[npt.NDArray[Any]]] = [[], [], []]
    for block in dataset.blocks():
        for column, part in zip(parts, _index_block(block, kinds), strict=True):
            column.append(part)
    keys, numbers, rows = map(_joined, parts)
    give_back_freed_memory()
    return Index(keys, numbers, rows, list(kinds))


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array of all parts, which are let go."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _index_block(block: Block, kinds: dict[tuple[str, ...], int]) -> tuple[npt.NDArray[Any], ...]:
    """Keys (int64), numbers of kinds (the smallest type that holds them) and row numbers (uint32)."""
    labels = block.labels or [()] * len(block)
    numbers = np.fromiter((kinds.setdefault(label, len(kinds)) for label in labels), np.uint32, len(block))
    smallest = np.min_scalar_type(len(kinds))
    return text_keys(same_forms(block.texts)), numbers.astype(smallest), block.rows.astype(np.uint32)


def check_labels(index: Index, dataset: Dataset) -> None:
    """DataError where there is nothing to learn, or the labels are no labels."""
    counts = index.label_counts
    column = ", ".join(dataset.mapped.label_columns)
    if not dataset.multi_label and len(counts) < 2:
        only = next(iter(counts), "")
        raise DataError(
            f"{dataset.address}: all {len(index):,} rows have the same label '{only}' (column '{column}'); "
            f"classification needs at least two. Other columns: {', '.join(dataset.available)}"
        )
    if not counts:
        raise DataError(f"{dataset.address}: no row has any label (column '{column}')")
    if len(counts) > _MANY and 2 * len(counts) > len(index):
        raise DataError(
            f"{dataset.address}: column '{column}' has {len(counts):,} different values in {len(index):,} rows, which "
            f"looks like texts or numbers rather than labels. Name another: data.columns.label=..., "
            f"of {', '.join(dataset.available)}"
        )
