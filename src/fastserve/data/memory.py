"""Encoded rows in memory: what a store gives, without a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from fastserve.types import Batch, Encoded, LongArray


@dataclass(frozen=True)
class MemoryRows:
    """Rows that fit the memory and can be made again. targets: int64 (rows,) or float32 (rows, classes)."""

    inputs: Encoded
    targets: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: LongArray) -> Batch:
        """The given rows, in the given order, copied out."""
        return Batch(rows, {name: ragged.take(rows) for name, ragged in self.inputs.items()}, self.targets[rows])
