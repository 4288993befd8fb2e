"""Optimizers for big tables of which a step touches few rows.

They do what torch's SGD and SparseAdam do with a coalesced sparse gradient, on the touched rows alone and without
sparse arithmetic, which costs several times as much as the update itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class RowOptimizer(torch.optim.Optimizer):
    """The walk over parameters; a subclass updates the touched rows of one."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("row optimizers take no closure")
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    rows, gradient = _touched(table.grad)
                    self.update(table, rows, gradient, group)

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """rows: int64 (U,), distinct except for plain gradient descent; gradient: (U, D)."""
        raise TypeError(f"{type(self).__name__} does not say how to update a table")


def _touched(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and their gradients, of a sparse gradient (or every row of a dense one)."""
    if gradient.is_sparse:
        return gradient._indices()[0], gradient._values()
    return torch.arange(len(gradient), device=gradient.device), gradient


class RowSgd(RowOptimizer):
    """Plain gradient descent."""

    def __init__(self, groups: Any, lr: float = 0.1) -> None:
        super().__init__(groups, {"lr": lr})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """As one row of numbers, which torch adds to several times faster; rows that repeat add up."""
        width = table.shape[1]
        places = rows[:, None] * width + torch.arange(width, device=rows.device)
        table.view(-1).index_add_(0, places.flatten(), gradient.flatten(), alpha=-group["lr"])


class RowAdam(RowOptimizer):
    """Adam whose moments move only where a row was touched ("lazy" Adam), as in torch's SparseAdam."""

    def __init__(
        self, groups: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(table), exp_avg_sq=torch.zeros_like(table))
        state["step"] += 1
        first, second = group["betas"]
        mean = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        correction = (1 - second ** state["step"]) ** 0.5
        size = group["lr"] * correction / (1 - first ** state["step"])
        table.index_add_(0, rows, mean.div_(square.sqrt_().add_(group["eps"])), alpha=-size)
