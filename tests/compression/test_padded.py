"""The padded forms against the networks' own forward()."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from export_samples import OwnNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastserve.bundle.runtimes.padded import pad
from fastserve.compression.padded import padded_form
from fastserve.errors import ConfigError
from fastserve.models import NetworkShape, RaggedTensor, build
from fastserve.models.own import OwnNetwork as Wrapped
from fastserve.types import Ragged

SHAPE = NetworkShape({"tokens": 40, "ngrams": 40}, 3)
SMALL = {"dim": 16, "layers": 2, "heads": 2, "feedforward": 32}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "transformer": build("transformer", SMALL, SHAPE),
        "transformer, first token": build("transformer", {**SMALL, "pooling": "cls"}, SHAPE),
        "textcnn": build("textcnn", {"dim": 8, "filters": 4, "widths": [1, 3]}, SHAPE),
        "mlp": build("mlp", {"dim": 8, "hidden": [8]}, SHAPE),
        "mlp without layers": build("mlp", {"dim": 8, "hidden": []}, SHAPE),
        "own": Wrapped("own", OwnNetwork(40, 3), 3),
    }


NETWORKS = {name: network.eval() for name, network in networks().items()}


@pytest.mark.parametrize("name", list(NETWORKS))
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    longest=st.sampled_from([None, 9, 20]),
    seed=st.integers(0, 99),
)
def test_a_padded_form_computes_the_same(name: str, lengths: list[int], longest: int | None, seed: int) -> None:
    generator = np.random.default_rng(seed)
    tokens = Ragged.from_rows([generator.integers(1, 40, length) for length in lengths])
    form = padded_form(NETWORKS[name], name, longest)
    with torch.no_grad():
        expected = NETWORKS[name]({"tokens": RaggedTensor.from_ragged(tokens)})
        found = form(*map(torch.from_numpy, pad(tokens)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_pretrained_encoder_too(tiny_folder: Path) -> None:
    network = build(str(tiny_folder), {}, SHAPE).eval()
    tokens = Ragged.from_rows([[1, 2, 3], [], [4]])
    with torch.no_grad():
        expected = network({"tokens": RaggedTensor.from_ragged(tokens)})
        found = padded_form(network, "folder")(*map(torch.from_numpy, pad(tokens)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_other_networks_are_refused_with_the_names_of_those_that_can() -> None:
    with pytest.raises(ConfigError, match=r"'bag' network cannot be exported.*transformer, textcnn, mlp"):
        padded_form(build("bag", {}, SHAPE), "bag")
