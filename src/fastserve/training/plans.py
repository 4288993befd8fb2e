"""What the loop asks of the data: rows in any order, and which of them make a step."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from fastserve.types import Batch, FloatArray, LongArray


class Rows(Protocol):
    """Encoded rows that can be read in any order (`data.store.Store`)."""

    def __len__(self) -> int: ...

    def batch(self, rows: LongArray) -> Batch: ...


class Plan(Protocol):
    """Which rows make the steps of an epoch, on all workers together (`data.batches.BatchPlan`)."""

    def epoch(self, number: int) -> list[LongArray]: ...


@runtime_checkable
class HasCounts(Protocol):
    """A plan of rows that do not count alike in the mean loss of a step (each by its tokens, say)."""

    def counts(self, rows: LongArray) -> FloatArray:
        """float (B,): how much each row counts. The loss of rows in which nothing counts must be 0, with a gradient."""
        ...


@runtime_checkable
class HasSizes(Protocol):
    """A plan of rows that do not take the same of `train.micro_batch`: that is then a number of tokens, say."""

    def sizes(self, rows: LongArray) -> LongArray:
        """int64 (B,)"""
        ...


@runtime_checkable
class HasLargest(Protocol):
    """A plan that knows which step would take most memory."""

    def largest(self) -> LongArray:
        """int64 (B,): the rows of a step that takes at least as much as any real one."""
        ...


def sizes_of(plan: Plan, rows: LongArray) -> LongArray:
    """int64 (B,): what each row takes of `train.micro_batch`, in tokens or as 1 row."""
    return plan.sizes(rows) if isinstance(plan, HasSizes) else rows * 0 + 1


def counts_of(plan: Plan, rows: LongArray) -> FloatArray | None:
    """float (B,): how much each row counts; None where all count the same."""
    return plan.counts(rows) if isinstance(plan, HasCounts) else None


def largest_of(plan: Plan) -> LongArray:
    return plan.largest() if isinstance(plan, HasLargest) else plan.epoch(0)[0]


def padding(batch: Batch) -> float:
    """The share of a batch of texts that no text fills, when all are made as long as the longest."""
    tokens = batch.inputs.get("tokens")
    longest = int(tokens.lengths.max()) if tokens is not None else 0
    return 1 - len(tokens.values) / (longest * len(batch)) if tokens is not None and longest else 0.0


def some(batches: list[LongArray], rows: int | None) -> list[LongArray]:
    """Batches spread over all, with about so many rows, and at least one; None: all."""
    total = sum(map(len, batches))
    if rows is None or rows >= total:
        return batches
    count = max(1, round(len(batches) * rows / total))
    return [batches[place] for place in np.linspace(0, len(batches) - 1, count).round().astype(int).tolist()]
