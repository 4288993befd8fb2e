"""Muon: momentum whose step for a matrix is the nearest orthogonal one, about (Jordan 2024,
https://kellerjordan.github.io/posts/muon/).

torch.optim.Muon takes matrices one by one, in bfloat16 also where a processor only emulates that, and no shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastserve.training.row_optimizers import Groups, RowOptimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that is applied again and again: steep at 0, and leaves singular values within 0.7 to 1.2."""
TIMES = 5
MOMENTUM = 0.95
TOGETHER = 1 << 24
"""Numbers of matrices that are made orthogonal together: several small ones are faster so."""


class Muon(RowOptimizer):
    """For matrices of hidden layers, whole or in shards. Groups have "lr" and "weight_decay".

    precision: in which directions are made orthogonal; of bfloat16's rounding nothing is seen in the loss.
    """

    def __init__(self, groups: Groups, precision: torch.dtype = torch.float32) -> None:
        super().__init__(groups)
        self.precision = precision

    @torch.no_grad()
    def step(self) -> None:
        place = 0
        for group in self.param_groups:
            moved = []
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moved.append((parameter, self._direction(parameter, self.state.setdefault(place, {}))))
                place += 1
            for some in _alike(moved):
                _move(some, group, self.precision)

    def _direction(self, parameter: nn.Parameter, state: dict[str, Any]) -> Tensor:
        """Nesterov's momentum, as the parameter is: whole or in shards."""
        gradient = parameter.grad
        if gradient is None:
            return torch.zeros_like(parameter)
        momentum = state.setdefault("momentum", torch.zeros_like(parameter, requires_grad=False))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


Moved = list[tuple[nn.Parameter, Tensor]]


def _alike(moved: Moved) -> Iterator[Moved]:
    """Matrices of one shape, up to TOGETHER numbers."""
    by_shape: dict[torch.Size, Moved] = {}
    for pair in moved:
        by_shape.setdefault(pair[0].shape, []).append(pair)
    for shape, pairs in by_shape.items():
        count = max(1, TOGETHER // shape.numel())
        for start in range(0, len(pairs), count):
            yield pairs[start : start + count]


def _move(moved: Moved, group: dict[str, Any], precision: torch.dtype) -> None:
    """Decay and move matrices of one shape (R, C)."""
    rows, columns = moved[0][0].shape
    rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
    found = orthogonal(torch.stack([whole(direction) for _, direction in moved]), precision)
    for (parameter, _), step in zip(moved, found, strict=True):
        parameter.mul_(1 - group["lr"] * group.get("weight_decay", 0.0)).sub_(_as(step, parameter), alpha=rate)


def orthogonal(matrices: Tensor, precision: torch.dtype) -> Tensor:
    """matrices (K, R, C) with their singular values made about 1, by Newton and Schulz's iteration in the precision."""
    first, second, third = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    found = (matrices.mT if tall else matrices).to(precision)
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(TIMES):
        product = found @ found.mT
        product = torch.baddbmm(product, product, product, beta=second, alpha=third)
        found = torch.baddbmm(found, product, found, beta=first)
    return (found.mT if tall else found).to(matrices.dtype)


def whole(tensor: Tensor) -> Tensor:
    """A tensor whose shards are put together, on every worker."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def _as(value: Tensor, like: Tensor) -> Tensor:
    """What this worker has of `value`, which all have, where `like` is in shards."""
    if not hasattr(like, "to_local"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
