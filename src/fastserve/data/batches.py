"""Which rows go together in a batch: a pure function of (lengths, seed, epoch), so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.types import LongArray

WINDOW = 50
"""Batches whose rows are sorted by length together: enough that a batch holds like lengths, and order stays random."""


@dataclass(frozen=True)
class BatchPlan:
    """Shuffled batches of rows of like length.

    lengths: (rows,) tokens in each row. batch: rows in one optimizer step, over all shards together. With shards > 1
    every shard makes the same steps and takes its part of each; the parts differ by at most one row (of the last
    batch of an epoch a part may be empty).
    """

    lengths: npt.NDArray[np.integer[Any]]
    batch: int
    seed: int
    shard: int = 0
    shards: int = 1

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.lengths) // self.batch)

    def epoch(self, number: int) -> list[LongArray]:
        """The batches of one epoch, each int64 (up to `batch` / shards,); over all shards every row exactly once."""
        generator = np.random.default_rng([self.seed, number])
        order = generator.permutation(len(self.lengths))
        window = np.arange(len(order)) // (WINDOW * self.batch)
        order = order[np.lexsort((self.lengths[order], window))]
        starts = generator.permutation(self.steps) * self.batch
        return [order[start : start + self.batch][self.shard :: self.shards] for start in starts.tolist()]


def evaluation_batches(
    lengths: npt.NDArray[np.integer[Any]], tokens: int, most_rows: int = 4096
) -> Iterator[LongArray]:
    """Every row once, shortest first, in batches that cost at most `tokens` when padded: longest * rows <= tokens.

    A row longer than `tokens` is a batch of its own.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    sizes = np.maximum(lengths[order], 1).astype(np.int64)
    start = 0
    while start < len(order):
        most = int(min(max(tokens // sizes[start], 1), most_rows))
        cost = sizes[start : start + most] * np.arange(1, len(sizes[start : start + most]) + 1)
        count = max(int(np.searchsorted(cost, tokens, side="right")), 1)
        yield order[start : start + count]
        start += count
