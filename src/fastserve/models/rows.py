"""Big tables of which a batch touches few rows: look them up, sum them, and give back small gradients.

Everything backward is done on the batch's distinct ids only. The plain forms (`table[ids]`, a sparse matrix product)
are what the tests compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastserve.models.ragged import RaggedTensor


@dataclass(frozen=True, slots=True)
class Grouping:
    """Equal ids brought together.

    unique: int64 (U,), the ids that occur, ascending; order: int64 (N,), positions sorted by id and within one id
    ascending; ends: int64 (U + 1,), `order[ends[u]:ends[u + 1]]` are the positions of `unique[u]`.
    """

    unique: Tensor
    order: Tensor
    ends: Tensor

    @property
    def places(self) -> Tensor:
        """For each of the N ids its place in `unique`: int64 (N,)."""
        counts = self.ends[1:] - self.ends[:-1]
        group = torch.arange(self.unique.shape[0], device=self.unique.device)
        group = torch.repeat_interleave(group, counts, output_size=self.order.shape[0])
        return torch.empty_like(self.order).index_copy_(0, self.order, group)


def group(ids: Tensor) -> Grouping:
    """Group ids (N,), none of them negative."""
    if ids.device.type == "cpu":
        return _group_by_keys(ids.numpy())
    values, order = torch.sort(ids.long(), stable=True)
    unique, counts = torch.unique_consecutive(values, return_counts=True)
    return Grouping(unique, order, nn.functional.pad(counts.cumsum(0), (1, 0)))


def _group_by_keys(ids: np.ndarray) -> Grouping:
    # one sort of (id, position) keys: several times faster here than torch.sort or torch.unique with an inverse
    keys = (ids.astype(np.uint64) << np.uint64(32)) | np.arange(len(ids), dtype=np.uint64)
    keys.sort()
    values = (keys >> np.uint64(32)).astype(np.int64)
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ends = np.append(starts, len(values))
    return Grouping(torch.from_numpy(values[starts]), torch.from_numpy(order), torch.from_numpy(ends))


def lookup(table: Tensor, unique: Tensor, *, sparse: bool) -> Tensor:
    """Rows `unique` (distinct, ascending) of `table` (V, D): (U, D).

    sparse: the gradient of `table` is a `sparse_coo` tensor of the touched rows, else a dense one.
    """
    found: Tensor = _Lookup.apply(table, unique, sparse)  # type: ignore[no-untyped-call]
    return found


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, unique: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(unique)
        ctx.shape, ctx.sparse = table.shape, sparse
        return table.index_select(0, unique)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (unique,) = ctx.saved_tensors
        return row_gradient(unique, gradient, ctx.shape, sparse=ctx.sparse), None, None


def row_gradient(unique: Tensor, rows: Tensor, shape: torch.Size, *, sparse: bool) -> Tensor:
    """The gradient of a table of `shape`: `rows` (U, D) at `unique` (U,) and zero elsewhere."""
    if sparse:
        return torch.sparse_coo_tensor(unique[None], rows, shape, is_coalesced=True, check_invariants=False)
    return rows.new_zeros(shape).index_copy_(0, unique, rows)


def weighted_sum(table: Tensor, ids: RaggedTensor, *, sparse: bool, repeats: bool = False) -> Tensor:
    """out[i] = sum of weight * table[id] over row i of `ids`, which has weights: (B, D).

    sparse: the gradient of `table` is a `sparse_coo` tensor of the touched rows. repeats: with an entry for each id,
    which saves a sort, for an optimizer that adds up what repeats.
    """
    parts = (ids.values, ids.offsets, ids.weights)
    summed: Tensor = _WeightedSum.apply(table, *parts, sparse, repeats)  # type: ignore[no-untyped-call]
    return summed


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        ids: Tensor,
        offsets: Tensor,
        weights: Tensor,
        sparse: bool,
        repeats: bool,
    ) -> Tensor:
        ids = ids.long()
        ctx.save_for_backward(ids, offsets, weights)
        ctx.shape, ctx.sparse, ctx.repeats = table.shape, sparse, repeats
        return _bag(table, ids, offsets, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ids, offsets, weights = ctx.saved_tensors
        nothing = (None,) * 5
        ragged = RaggedTensor(ids, offsets, weights)
        if ctx.sparse and ctx.repeats:
            # Strided: torch joins such gradients where they are accumulated; others it would merge entry by entry,
            # which takes seven times as long.
            parts = weights.new_empty(len(ids), gradient.shape[1] + 1)[:, : gradient.shape[1]]
            torch.mul(ragged.spread(gradient), weights[:, None], out=parts)
            return torch.sparse_coo_tensor(ids[None], parts, ctx.shape, check_invariants=False), *nothing
        groups = group(ids)
        found = _bag(gradient.contiguous(), ragged.rows[groups.order], groups.ends, weights[groups.order])
        return row_gradient(groups.unique, found, ctx.shape, sparse=ctx.sparse), *nothing


def _bag(table: Tensor, ids: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    sums, last_offset = 0, True
    summed, *_ = torch.embedding_bag(table, ids, offsets, False, sums, False, weights, last_offset)
    return summed
