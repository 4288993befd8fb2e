"""Optimizers by name. Row-sparse gradients get an optimizer that touches only the rows that were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastserve.models.network import HasSparseGradients
from fastserve.types import Recipe

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=True)


def _adagrad(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, lr=recipe.learning_rate)


def _sgd(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


def _sparse_adam(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SparseAdam(
        [parameter for group in groups for parameter in group["params"]], lr=recipe.learning_rate
    )


def _sparse_sgd(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=recipe.learning_rate)


_DENSE: Mapping[str, Callable[[Groups, Recipe], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adagrad": _adagrad,
    "sgd": _sgd,
}
_SPARSE: Mapping[str, Callable[[Groups, Recipe], torch.optim.Optimizer]] = {
    "adamw": _sparse_adam,
    "adagrad": _adagrad,
    "sgd": _sparse_sgd,
}


class Optimizers:
    """All parameters of a network under one `step`.

    Weight decay is for matrices only: biases, norms and row-sparse tables are left alone.
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        trained = [p for p in network.parameters() if p.requires_grad]
        sparse = {id(p) for p in sparse_parameters(network)}
        self.dense = [p for p in trained if id(p) not in sparse]
        self.parts: list[torch.optim.Optimizer] = []
        if self.dense:
            self.parts.append(_DENSE[recipe.optimizer](self._groups(self.dense), recipe))
        if sparse:
            groups = [{"params": [p for p in trained if id(p) in sparse], "weight_decay": 0.0}]
            self.parts.append(_SPARSE[recipe.optimizer](groups, recipe))

    def _groups(self, parameters: list[nn.Parameter]) -> Groups:
        decayed = [p for p in parameters if p.dim() >= 2]
        plain = [p for p in parameters if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": self.recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def step(self, rate: float) -> None:
        """One update with `rate` times the recipe's learning rate, then empty gradients."""
        if self.recipe.gradient_clip and self.dense:
            nn.utils.clip_grad_norm_(self.dense, self.recipe.gradient_clip, foreach=True)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.recipe.learning_rate * rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def restore(self, states: Iterable[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def sparse_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The network's big tables, which from now on give row-sparse gradients."""
    if not isinstance(network, HasSparseGradients):
        return []
    network.sparse_gradients = True
    names = set(network.sparse_parameters())
    return [parameter for name, parameter in network.named_parameters() if name in names]
