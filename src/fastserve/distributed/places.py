"""Where the tensors of a checkpoint go: into tensors that are there, or into new ones like those that they belong to.

A place is a function (keys that lead to the tensor, its shape and type as a meta tensor) -> the tensor to fill, or None
where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastserve.distributed.tree import Where

Place = Callable[[Where, Tensor], Tensor | None]


def into(template: Any) -> Place:
    """The tensors of nested state, where it has one."""

    def place(where: Where, meta: Tensor) -> Tensor | None:
        value = template
        for key in where:
            if isinstance(value, list | tuple):
                value = value[key] if isinstance(key, int) and key < len(value) else None
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, Tensor) else None

    return place


def beside(tensors: Mapping[str, Tensor], *prefix: str | int) -> Place:
    """New tensors under `prefix`, on the device and in the shards of those in `tensors` that have their name."""

    def place(where: Where, meta: Tensor) -> Tensor | None:
        like = tensors.get(str(where[-1])) if where[:-1] == prefix else None
        return None if like is None else torch.empty_like(like, dtype=meta.dtype, requires_grad=False)

    return place


def optimizer_state(optimizer: Any, *prefix: str | int) -> Place:
    """New tensors for the `state_dict` of a torch optimizer under `prefix`.

    What has the shape of its parameter is on the same device and in the same shards; the rest is left to others.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    start = (*prefix, "state")

    def place(where: Where, meta: Tensor) -> Tensor | None:
        if where[: len(start)] != start or len(where) != len(start) + 2:
            return None
        number = where[len(start)]
        if not isinstance(number, int) or number >= len(parameters) or parameters[number].shape != meta.shape:
            return None
        return torch.empty_like(parameters[number], dtype=meta.dtype, requires_grad=False)

    return place
