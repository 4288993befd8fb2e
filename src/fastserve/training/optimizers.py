"""Optimizers by name. Row-sparse gradients get an optimizer that touches only the rows that were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastserve.errors import TrainingError
from fastserve.training.groups import groups_of, use_sparse_gradients
from fastserve.training.muon import Muon, whole
from fastserve.training.row_optimizers import PlainDescent, RowAdam, RowOptimizer, add_rows
from fastserve.types import ParameterGroup, Recipe

Groups = list[dict[str, Any]]
Reduce = Callable[[Iterable[nn.Parameter], bool], None]
"""Makes the row-sparse gradients of tables those of all workers (`Strategy.reduce`)."""
Maker = Callable[[Groups, Recipe, torch.dtype], torch.optim.Optimizer | RowOptimizer]
"""The type is that of matrix products, for optimizers that have some."""

DENSE: Mapping[str, Maker] = {
    "adamw": lambda groups, recipe, precision: torch.optim.AdamW(
        groups, betas=recipe.betas, eps=recipe.eps, fused=True
    ),
    "muon": lambda groups, recipe, precision: Muon(groups, precision),
    "adagrad": lambda groups, recipe, precision: torch.optim.Adagrad(groups),
    "sgd": lambda groups, recipe, precision: PlainDescent(groups),
}
SPARSE: Mapping[str, Maker] = {
    "adamw": lambda groups, recipe, precision: RowAdam(groups),
    "adagrad": lambda groups, recipe, precision: torch.optim.Adagrad(groups),
    "sgd": lambda groups, recipe, precision: PlainDescent(groups),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One optimizer, which steps once in `accumulate` steps of the run."""

    optimizer: torch.optim.Optimizer | RowOptimizer
    tables: tuple[nn.Parameter, ...]
    """Those with row-sparse gradients."""
    accumulate: int = 1
    normalized: bool = False
    """Whether a step moves the touched rows alone, and as far however large their gradients are."""

    def step(self, rate: float, reduce: Reduce) -> None:
        """One update with `rate` times the full learning rates, then empty gradients."""
        reduce(self.tables, self.normalized)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * rate
            if self.accumulate > 1:
                for parameter in group["params"]:
                    parameter.grad = _dense_mean(parameter, self.accumulate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Optimizers:
    """All parameters of a network under one `step`.

    Weight decay is for matrices only: biases, norms and row-sparse tables are left alone.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        reduce: Reduce = lambda tables, normalized: None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.recipe, self.precision = recipe, precision
        self.reduce = reduce
        self.steps = 0
        sparse = use_sparse_gradients(network)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.dense = [p for name, p in trained.items() if name not in sparse]
        self.parts: list[Part] = []
        for group in groups_of(network, recipe, trained):
            members = {name: trained[name] for name in group.parameters}
            self._add(group, members, sparse)

    def _add(self, group: ParameterGroup, members: Mapping[str, nn.Parameter], tables: set[str]) -> None:
        """One optimizer for the dense members of a group, and those that accumulate, and one for the others."""
        rate = self.recipe.learning_rate * group.rate
        big = [p for name, p in members.items() if name in tables]
        waiting, by_rows = (big, []) if group.accumulate > 1 else ([], big)
        matrices = [p for name, p in members.items() if name not in tables and p.dim() >= 2]
        vectors = [p for name, p in members.items() if name not in tables and p.dim() < 2]
        dense = [
            {"params": matrices, "lr": rate, "full_rate": rate, "weight_decay": group.weight_decay},
            {"params": waiting, "lr": rate, "full_rate": rate, "weight_decay": group.weight_decay},  # never in shards
            {"params": vectors, "lr": rate, "full_rate": rate, "weight_decay": 0.0},
        ]
        dense = [part for part in dense if part["params"]]
        if group.optimizer == "muon" and (vectors or big or any(matrix.dim() > 2 for matrix in matrices)):
            raise TrainingError(
                f"muon is for matrices alone: {', '.join(members)} are not all dense and of dimension 2"
            )
        if dense:
            self.parts.append(
                Part(DENSE[group.optimizer](dense, self.recipe, self.precision), tuple(waiting), group.accumulate)
            )
        if by_rows:
            optimizer = SPARSE[group.optimizer](
                [{"params": by_rows, "lr": rate, "full_rate": rate}], self.recipe, self.precision
            )
            self.parts.append(Part(optimizer, tuple(by_rows), normalized=group.optimizer != "sgd"))

    @property
    def at_rest(self) -> bool:
        """Whether no part waits for more gradients, so that the state is whole."""
        return all(self.steps % part.accumulate == 0 for part in self.parts)

    def clip(self) -> Tensor | None:
        """Make the gradient of dense parameters no longer than the recipe says; its norm before, if there is one."""
        gradients = [parameter.grad for parameter in self.dense if parameter.grad is not None]
        if not gradients:
            return None
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.recipe.gradient_clip:
            nn.utils.clip_grads_with_norm_(self.dense, self.recipe.gradient_clip, norm, foreach=True)
        return whole(norm)

    def step(self, rate: float) -> None:
        """One step of every part whose turn it is, with `rate` times its full learning rate."""
        self.steps += 1
        for part in self.parts:
            if self.steps % part.accumulate == 0:
                part.step(rate, self.reduce)

    def forget_gradients(self) -> None:
        for part in self.parts:
            part.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "parts": [part.optimizer.state_dict() for part in self.parts]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        for part, found in zip(self.parts, state["parts"], strict=True):
            part.optimizer.load_state_dict(found)


def _dense_mean(parameter: nn.Parameter, steps: int) -> Tensor | None:
    """The accumulated gradient of `parameter`, all of it, for one step."""
    gradient = parameter.grad
    if gradient is None or not gradient.is_sparse:
        return None if gradient is None else gradient / steps
    dense = torch.zeros_like(parameter)
    add_rows(dense, gradient._indices()[0], gradient._values(), alpha=1 / steps)
    return dense
