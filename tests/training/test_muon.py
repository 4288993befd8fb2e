"""Muon moves hidden matrices by the nearest orthogonal one of their momentum, and adamw all else."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastserve.errors import ConfigError
from fastserve.training.groups import groups_of, hidden_matrices
from fastserve.training.muon import Muon, orthogonal
from fastserve.training.optimizers import Optimizers
from fastserve.types import Recipe

RECIPE = Recipe(epochs=1, batch=1, learning_rate=0.01, optimizer="muon", matrix_rate=0.02, gradient_clip=0.0)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.wide = nn.Linear(6, 9)
        self.tall = nn.Linear(9, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 3)


class Tied(Small):
    """Its head is the table."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    found = orthogonal(matrices, torch.float64)
    for matrix, result in zip(matrices, found, strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.diagonal(left.T @ result @ right.T)
        assert ((values > 0.6) & (values < 1.3)).all()
        torch.testing.assert_close(left @ torch.diag(values) @ right, result)


def test_it_is_torchs_but_for_the_precision() -> None:
    torch.manual_seed(0)
    mine = nn.Parameter(torch.randn(6, 10))
    other = nn.Parameter(mine.detach().clone())
    optimizer = Muon([{"params": [mine], "lr": 0.02, "weight_decay": 0.1}])
    plain = torch.optim.Muon([other], lr=0.02, weight_decay=0.1)
    start = mine.detach().clone()
    for _ in range(5):
        gradient = torch.randn(6, 10)
        for parameter, used in ((mine, optimizer), (other, plain)):
            parameter.grad = gradient.clone()
            used.step()
    assert (mine - other).norm() < 0.02 * (other - start).norm()  # torch computes in bfloat16


def test_which_matrices_are_hidden() -> None:
    assert hidden_matrices(Small()) == {"wide.weight", "tall.weight"}
    assert hidden_matrices(Tied()) == {"wide.weight", "tall.weight", "out.weight"}


def test_everything_has_one_optimizer_and_matrices_have_their_rate() -> None:
    network = Small()
    names = [name for name, _ in network.named_parameters()]
    groups = list(groups_of(network, RECIPE, names))
    assert sorted(name for group in groups for name in group.parameters) == sorted(names)
    optimizers = Optimizers(network, RECIPE)
    rates = {type(part.optimizer).__name__: part.optimizer.param_groups[0]["full_rate"] for part in optimizers.parts}
    assert rates == {"Muon": pytest.approx(0.02), "AdamW": 0.01}


def test_a_network_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="none that are trained: use adamw"):
        Optimizers(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)), RECIPE)


def test_its_state_is_taken_up_exactly() -> None:
    torch.manual_seed(0)
    network = Small()
    optimizers = Optimizers(network, replace(RECIPE, weight_decay=0.1))
    gradients = [[torch.randn_like(p) for p in network.parameters()] for _ in range(4)]

    def step(used: Optimizers, module: nn.Module, number: int) -> None:
        for parameter, gradient in zip(module.parameters(), gradients[number], strict=True):
            parameter.grad = gradient.clone()
        used.step(1.0)

    step(optimizers, network, 0)
    step(optimizers, network, 1)
    second = copy.deepcopy(network)
    other = Optimizers(second, replace(RECIPE, weight_decay=0.1))
    other.restore(copy.deepcopy(optimizers.state()))
    for number in (2, 3):
        step(optimizers, network, number)
        step(other, second, number)
    for one, two in zip(network.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
