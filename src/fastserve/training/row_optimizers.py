"""Optimizers for big tables of which a step touches few rows, and plain gradient descent for everything.

They do what torch's SGD and SparseAdam do, on the touched rows alone and without sparse arithmetic, which costs several
times as much as the update itself. They do not build on `torch.optim.Optimizer`: its first use imports the compiler,
which takes longer than the training of a small network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Groups = Iterable[dict[str, Any]]


class RowOptimizer:
    """The walk over parameters; a subclass updates one. The methods are those of `torch.optim.Optimizer` that are used.

    param_groups: dicts with "params" and "lr".
    """

    def __init__(self, groups: Groups) -> None:
        self.param_groups = list(groups)
        self.state: dict[int, dict[str, Any]] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self) -> None:
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group, self.state.setdefault(place, {}))
                place += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"state": {place: dict(state) for place, state in self.state.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        devices = [parameter.device for parameter in self.parameters]
        self.state = {
            place: {name: v.to(devices[place]) if isinstance(v, Tensor) else v for name, v in found.items()}
            for place, found in state["state"].items()
        }

    def update(self, parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Change `parameter` by its gradient. state: what is remembered of it, empty before the first step."""
        raise TypeError(f"{type(self).__name__} does not say how to update a parameter")


class PlainDescent(RowOptimizer):
    """Gradient descent without momentum. Rows of a sparse gradient may repeat; a group may have "weight_decay"."""

    def update(self, parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any]) -> None:
        gradient, rate = parameter.grad, group["lr"]
        if gradient is None:
            return
        if not gradient.is_sparse:
            parameter.mul_(1 - rate * group.get("weight_decay", 0.0)).sub_(gradient, alpha=rate)
            return
        add_rows(parameter, gradient._indices()[0], gradient._values(), alpha=-rate)


def add_rows(table: Tensor, rows: Tensor, values: Tensor, *, alpha: float) -> None:
    """table[row] += alpha * value for rows (N,), which may repeat, and values (N, D).

    As one row of numbers, which torch adds to several times faster.
    """
    width = table.shape[1]
    places = rows if width == 1 else (rows[:, None] * width + torch.arange(width, device=table.device)).flatten()
    table.view(-1).index_add_(0, places, values.flatten(), alpha=alpha)


def add_up(tables: Iterable[nn.Parameter]) -> None:
    """Let the rows of each row-sparse gradient be distinct again, after it was summed from several."""
    for table in tables:
        if table.grad is not None and table.grad.is_sparse:
            table.grad = table.grad.coalesce()


class RowAdam(RowOptimizer):
    """Adam whose moments move only where a row was touched ("lazy" Adam), as in torch's SparseAdam.

    Rows of a sparse gradient must be distinct.
    """

    betas = (0.9, 0.999)
    eps = 1e-8

    def update(self, parameter: nn.Parameter, group: dict[str, Any], state: dict[str, Any]) -> None:
        rows, gradient = _touched(parameter)
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        first, second = self.betas
        mean = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        correction = (1 - second ** state["step"]) ** 0.5
        size = group["lr"] * correction / (1 - first ** state["step"])
        parameter.index_add_(0, rows, mean.div_(square.sqrt_().add_(self.eps)), alpha=-size)


def _touched(parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Rows and their gradients, of a sparse gradient (or every row of a dense one)."""
    gradient = parameter.grad
    if gradient is None or not gradient.is_sparse:
        rows = torch.arange(len(parameter), device=parameter.device)
        return rows, torch.zeros_like(parameter) if gradient is None else gradient
    return gradient._indices()[0], gradient._values()
