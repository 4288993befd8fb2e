"""The loss of two answers, against the formula written plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastserve.models import NetworkShape, build
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.preference import PreferenceTuning

OPTIONS = {"layers": 1, "dim": 16, "heads": 2, "key_value_heads": 1, "context": 32}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("decoder-15m", OPTIONS, NetworkShape({"tokens": 40}, 40), causal=True).double()


def answers(seed: int, pairs: int = 5) -> RaggedTensor:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(4, 12, pairs)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    weights = torch.cat([torch.tensor([0.0, 0.0] + [1.0] * (length - 2)) for length in lengths.tolist()])
    return RaggedTensor(torch.tensor(generator.integers(0, 40, int(lengths.sum()))), offsets, weights)


def plain(model: torch.nn.Module, rows: RaggedTensor) -> torch.Tensor:
    """Log-likelihood of each row's counted tokens, from whole logits."""
    found = []
    for start, stop in zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True):
        ids = rows.values[start:stop]
        logs = model({"tokens": RaggedTensor(ids, torch.tensor([0, stop - start]))}).log_softmax(-1)
        found.append((logs[:-1].gather(1, ids[1:, None])[:, 0] * rows.weights[start + 1 : stop]).sum())  # type: ignore[index]
    return torch.stack(found)


@pytest.mark.parametrize("likelihood", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_formula(likelihood: float) -> None:
    model, task = network(), PreferenceTuning(beta=0.2, likelihood=likelihood)
    inputs = {"tokens": answers(1), "rejected": answers(2)}
    reference = torch.tensor(np.random.default_rng(3).normal(-20, 3, (5, 2)))
    loss = task.loss(model, inputs, reference)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}  # type: ignore[union-attr]
    model.zero_grad()
    chosen, rejected = plain(model, inputs["tokens"]), plain(model, inputs["rejected"])
    margin = 0.2 * ((chosen - reference[:, 0]) - (rejected - reference[:, 1]))
    counted = inputs["tokens"].lengths - 2
    expected = (-functional.logsigmoid(margin) - likelihood * chosen / counted).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_figures_of_an_evaluation() -> None:
    model, task = network(), PreferenceTuning(beta=0.5)
    inputs = {"tokens": answers(1), "rejected": answers(2)}
    scores = task.score(model, inputs).numpy()
    with torch.no_grad():
        wanted = torch.stack([plain(model, inputs["tokens"]), plain(model, inputs["rejected"])], 1).numpy()
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
    same = task.quick_metrics(scores, scores)
    assert same["loss"] == pytest.approx(math.log(2))
    assert (same["accuracy"], same["margin"]) == (0.0, 0.0)
    better = task.quick_metrics(scores + np.array([1.0, -1.0]), scores)
    assert (better["accuracy"], better["margin"]) == (1.0, pytest.approx(1.0))
