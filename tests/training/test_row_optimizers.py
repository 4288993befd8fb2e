"""Row optimizers give what torch's own give with the same sparse gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fastserve.training.row_optimizers import PlainDescent, RowAdam


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(("make", "reference"), [(PlainDescent, torch.optim.SGD), (RowAdam, torch.optim.SparseAdam)])
def test_the_same_as_torch(make: Any, reference: Any, width: int) -> None:
    torch.manual_seed(0)
    mine, other = (torch.nn.Parameter(torch.zeros(50, width)) for _ in range(2))
    optimizer, plain = make([{"params": [mine], "lr": 0.1}]), reference([other], lr=0.1)
    for _ in range(20):
        rows = torch.randperm(50)[:7].sort().values
        values = torch.randn(7, width)
        for table in (mine, other):
            table.grad = torch.sparse_coo_tensor(
                rows[None], values, table.shape, is_coalesced=True, check_invariants=False
            )
        optimizer.step()
        plain.step()
    torch.testing.assert_close(mine, other)


def test_plain_descent_adds_up_rows_that_repeat() -> None:
    table = torch.nn.Parameter(torch.zeros(3, 2))
    table.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 2]]), torch.ones(3, 2), table.shape, check_invariants=False
    )
    PlainDescent([{"params": [table], "lr": 0.5}]).step()
    assert table.tolist() == [[0, 0], [-1, -1], [-0.5, -0.5]]


def test_dense_descent_with_weight_decay_is_torchs() -> None:
    mine, other = (torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    groups = {"lr": 0.1, "weight_decay": 0.2}
    for parameter, used in (
        (mine, PlainDescent([{"params": [mine], **groups}])),
        (other, torch.optim.SGD([other], **groups)),
    ):
        parameter.grad = torch.ones(2, 3)
        used.step()
    torch.testing.assert_close(mine, other)


def test_the_state_can_be_taken_up_again() -> None:
    table = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = RowAdam([{"params": [table], "lr": 0.1}])
    table.grad = torch.ones(4, 2)
    optimizer.step()
    second = torch.nn.Parameter(table.detach().clone())
    other = RowAdam([{"params": [second], "lr": 0.1}])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, used in ((table, optimizer), (second, other)):
        parameter.grad = torch.ones(4, 2)
        used.step()
    assert torch.equal(table, second)
