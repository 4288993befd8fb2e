"""Which rows of a corpus make a step: whole rows end to end up to a number of tokens, nothing padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.data.batches import shuffled
from fastserve.types import FloatArray, LongArray


@dataclass(frozen=True)
class PackPlan:
    """Shuffled rows, cut into steps of about equally many tokens: a pure function of (lengths, seed, epoch).

    lengths: (rows,) tokens in each row. tokens: most tokens of a step on all workers together, up to one row more.
    counted: float32 (rows,), tokens of each row that count in the loss, by which workers' losses are weighed.
    alike: rows of so many steps are sorted by length together, for a network that pads; 1: they stay at random.
    """

    lengths: npt.NDArray[np.integer[Any]]
    tokens: int
    seed: int
    counted: FloatArray
    alike: int = 1

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return max(1, -(-int(self.lengths.sum(dtype=np.int64)) // self.tokens))

    def counts(self, rows: LongArray) -> FloatArray:
        """float32 (B,)"""
        return self.counted[rows]

    def sizes(self, rows: LongArray) -> LongArray:
        """int64 (B,): tokens of each row."""
        return self.lengths[rows].astype(np.int64)

    def epoch(self, number: int) -> list[LongArray]:
        """The steps of one epoch, each int64 (rows of it,), the longest first; every row exactly once."""
        generator = np.random.default_rng([self.seed, number])
        order = shuffled(len(self.lengths), generator)
        if self.alike > 1:
            order = order[np.lexsort((self.lengths[order], self._cut(order) // self.alike))]
        starts = np.flatnonzero(np.diff(self._cut(order), prepend=-1))
        parts = np.split(order, starts[1:])
        if self.alike > 1:
            parts = [parts[place] for place in generator.permutation(len(parts)).tolist()]
        return [part[np.argsort(-self.lengths[part].astype(np.int64), kind="stable")] for part in parts if len(part)]

    def _cut(self, order: LongArray) -> LongArray:
        """The step of each row, rising: as many tokens in each, so that none is tiny."""
        lengths = self.lengths[order].astype(np.int64)
        step: LongArray = (np.cumsum(lengths) - lengths) * self.steps // max(int(lengths.sum()), 1)
        return step


def packed_batches(lengths: npt.NDArray[np.integer[Any]], tokens: int) -> list[LongArray]:
    """Every row once, the shortest first, in batches of at most `tokens` tokens (a longer row is one of its own)."""
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    batches: list[LongArray] = []
    start, total = 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        if place > start and total + length > tokens:
            batches.append(order[start:place])
            start, total = place, 0
        total += length
    return [*batches, order[start:]] if len(order) else []
