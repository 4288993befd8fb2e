"""Rows of different lengths as tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.models import RaggedTensor
from fastserve.models.rows import group, lookup, weighted_sum
from fastserve.types import Ragged

ROWS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), min_size=1, max_size=6)


@given(rows=ROWS)
def test_padding_keeps_every_row(rows: list[list[int]]) -> None:
    ragged = RaggedTensor.from_ragged(Ragged.from_rows(rows))
    ids, mask = ragged.padded(fill=-1)
    assert ids.dtype == torch.int64
    assert ids.shape == mask.shape == (len(rows), max(1, *(len(row) for row in rows), 1))
    assert [ids[i][mask[i]].tolist() for i in range(len(rows))] == rows
    assert (ids[~mask] == -1).all()
    assert ragged.rows.tolist() == [i for i, row in enumerate(rows) for _ in row]
    parts = torch.randn(len(rows), 2)
    assert torch.equal(ragged.spread(parts), parts[ragged.rows])


def test_arrays_of_a_read_only_map_are_taken() -> None:
    values = np.arange(3, dtype=np.int32)
    values.flags.writeable = False
    ragged = RaggedTensor.from_ragged(Ragged(values, np.array([0, 3]), np.ones(3, np.float32)))
    moved = ragged.to("cpu")
    assert len(moved) == 1
    assert moved.weights is not None
    assert moved.values.tolist() == [0, 1, 2]


@given(ids=st.lists(st.integers(0, 40), max_size=60))
def test_grouping_brings_equal_ids_together(ids: list[int]) -> None:
    groups = group(torch.tensor(ids, dtype=torch.int32))
    assert groups.unique.tolist() == sorted(set(ids))
    assert groups.unique[groups.places].tolist() == ids
    for number, value in enumerate(groups.unique.tolist()):
        positions = groups.order[groups.ends[number] : groups.ends[number + 1]].tolist()
        assert positions == [position for position, found in enumerate(ids) if found == value]


@settings(deadline=None)  # the first comparison of tensors imports much
@given(rows=st.lists(st.lists(st.integers(0, 19), max_size=8), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_weighted_sums_and_their_gradients_equal_the_plain_form(rows: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    ragged = RaggedTensor.from_ragged(Ragged.from_rows(rows))
    weighted = ragged.with_values(ragged.values, torch.rand(len(ragged.values)))
    upstream = torch.randn(len(rows), 3)
    fast, plain = (torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    matrix = torch.zeros(len(rows), 20)
    matrix.index_put_((ragged.rows, ragged.values.long()), weighted.weights, accumulate=True)  # type: ignore[arg-type]
    summed = weighted_sum(fast, weighted, sparse=False)
    torch.testing.assert_close(summed, matrix @ plain)
    (summed * upstream).sum().backward()
    (matrix @ plain * upstream).sum().backward()
    torch.testing.assert_close(fast.grad, plain.grad)


def test_lookup_gives_back_the_gradient_of_touched_rows() -> None:
    table = torch.randn(6, 2, requires_grad=True)
    lookup(table, torch.tensor([1, 4]), sparse=False).sum().backward()
    assert table.grad is not None
    assert table.grad.sum(1).tolist() == [0, 2, 0, 0, 2, 0]


def test_gradients_for_each_id_add_up_where_they_are_accumulated() -> None:
    ragged = RaggedTensor(torch.tensor([3, 1, 3]), torch.tensor([0, 2, 3]), torch.tensor([1.0, 2.0, 4.0]))
    each, plain = (torch.zeros(5, 2, requires_grad=True) for _ in range(2))
    for factor in (1.0, 10.0):
        (weighted_sum(each, ragged, sparse=True, repeats=True) * factor).sum().backward()
        (weighted_sum(plain, ragged, sparse=False) * factor).sum().backward()
    assert each.grad is not None
    assert plain.grad is not None
    assert each.grad.is_sparse
    torch.testing.assert_close(each.grad.to_dense(), plain.grad)
