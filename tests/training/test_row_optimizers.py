"""Row optimizers give what torch's own give with the same sparse gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fastserve.training.row_optimizers import RowAdam, RowSgd


@pytest.mark.parametrize(
    ("make", "reference"),
    [(RowSgd, torch.optim.SGD), (lambda p, lr: RowAdam(p, lr, betas=(0.9, 0.99)), None)],
)
def test_the_same_as_torch(make: Any, reference: Any) -> None:
    torch.manual_seed(0)
    mine, other = (torch.nn.Parameter(torch.zeros(50, 3)) for _ in range(2))
    optimizer = make([mine], lr=0.1)
    plain = reference([other], lr=0.1) if reference else torch.optim.SparseAdam([other], lr=0.1, betas=(0.9, 0.99))
    for _ in range(20):
        rows = torch.randperm(50)[:7].sort().values
        values = torch.randn(7, 3)
        for table in (mine, other):
            table.grad = torch.sparse_coo_tensor(
                rows[None], values, table.shape, is_coalesced=True, check_invariants=False
            )
        optimizer.step()
        plain.step()
    torch.testing.assert_close(mine, other)


def test_the_state_can_be_taken_up_again() -> None:
    table = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = RowAdam([table], lr=0.1)
    table.grad = torch.ones(4, 2)
    optimizer.step()
    second = torch.nn.Parameter(table.detach().clone())
    other = RowAdam([second], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, used in ((table, optimizer), (second, other)):
        parameter.grad = torch.ones(4, 2)
        used.step()
    assert torch.equal(table, second)
