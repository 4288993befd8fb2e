"""The named sizes: as many weights as they say, and a training that suits their size."""

from __future__ import annotations

import pytest
import torch

from fastserve.models import NetworkShape, build, find
from fastserve.models.decoder import DecoderOptions, hidden_weights


@pytest.mark.parametrize(("name", "weights"), [("decoder-15m", 15.7), ("decoder-125m", 126), ("decoder-1b", 1036)])
def test_a_size_has_the_weights_that_it_says(name: str, weights: float) -> None:
    vocabulary = find(name, causal=True).preferences.vocabulary_size
    with torch.device("meta"):
        network = build(name, {}, NetworkShape({"tokens": vocabulary}, vocabulary), causal=True)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(weights, rel=0.01)


def test_weights_between_embedding_and_head_are_counted() -> None:
    with torch.device("meta"):
        network = build("decoder-15m", {"layers": 3}, NetworkShape({"tokens": 9}, 9), causal=True)
    matrices = sum(value.numel() for name, value in network.named_parameters() if "layers" in name and value.dim() == 2)
    assert hidden_weights(DecoderOptions(layers=3)) == matrices


def test_larger_networks_learn_in_smaller_steps_and_more_tokens_in_larger_batches() -> None:
    small, large = find("decoder-15m", causal=True), find("decoder-1b", causal=True)
    few, many = small.recipe(1_000, 0), small.recipe(1_000_000, 0)
    assert large.recipe(1_000_000, 0).learning_rate < many.learning_rate / 3
    assert few.batch < many.batch
    assert (few.epochs, many.epochs) == (4, 1)
    assert 1e-3 < few.learning_rate < 2e-3
    assert small.recipe(0, 0).batch == 1
