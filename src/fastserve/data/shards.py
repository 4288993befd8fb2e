"""Several stores of encoded rows as one, in order: what a corpus larger than the memory is encoded into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.data.store import Store
from fastserve.errors import StorageError
from fastserve.types import Batch, IntArray, LongArray, Ragged


@dataclass(frozen=True)
class Shards:
    """Rows counted through all stores."""

    stores: tuple[Store, ...]
    starts: LongArray
    """int64 (stores + 1,): the number of each one's first row, and of all rows."""

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """The stores below `folder`, by name. StorageError where there is none, or one is damaged."""
        whole = sorted(path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
        stores = tuple(map(Store.open, whole))  # a process that was killed may have left another folder
        if not stores:
            raise StorageError(f"{folder} holds no encoded rows; remove it and run again")
        return cls(stores, np.cumsum([0, *map(len, stores)]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def encodings(self) -> tuple[str, ...]:
        return self.stores[0].encodings

    @property
    def targets(self) -> npt.NDArray[Any]:
        return np.concatenate([store.targets for store in self.stores])

    @property
    def row_numbers(self) -> LongArray:
        return np.concatenate([store.row_numbers for store in self.stores])

    def lengths(self, encoding: str) -> IntArray:
        """int32 (rows,)"""
        return np.concatenate([store.lengths(encoding) for store in self.stores])

    def batch(self, rows: LongArray) -> Batch:
        """The given rows, in the given order, copied out."""
        if len(self.stores) == 1:
            return self.stores[0].batch(rows)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        parts = [
            self.stores[number].batch(rows[order[owner[order] == number]] - self.starts[number])
            for number in np.unique(owner).tolist()
        ]
        back = np.argsort(order, kind="stable")
        inputs = {
            name: Ragged.concatenate([part.inputs[name] for part in parts]).take(back) for name in parts[0].inputs
        }
        return Batch(rows, inputs, np.concatenate([part.targets for part in parts])[back])

    def in_order(self, rows: int) -> Iterator[Batch]:
        """All rows, at most `rows` at a time, in their order."""
        for store in self.stores:
            yield from store.in_order(rows)
