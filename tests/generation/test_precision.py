"""Lighter weights: numbers near those of the network, and a loss that is measured."""

from __future__ import annotations

import copy

import pytest
import torch
from engines import KINDS, engine_of, greedy, network_of, run
from torch import nn

from fastserve.errors import ConfigError
from fastserve.generation.fast_decoder import fast_form
from fastserve.generation.orders import Order
from fastserve.generation.precision import check_loss, lighter, linear_of, loss, pick
from fastserve.models.attention import PackedCausal

CPU = torch.device("cpu")
FAST = {"decoder", "decoder-qwen3", "llama", "qwen2", "qwen3", "mistral"}
ROWS = [list(range(5, 60)), [9, 8, 7, 6, 5, 4, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_form_is_that_of_the_family_alone(kind: str) -> None:
    assert (fast_form(network_of(kind), "float32") is not None) == (kind in FAST)


def test_a_network_that_was_changed_is_not_taken_for_one_of_the_family() -> None:
    changed = copy.deepcopy(network_of("decoder"))
    changed.model.layers[0].mlp.register_forward_hook(lambda module, given, found: found * 2)
    assert fast_form(changed, "float32") is None


@pytest.mark.parametrize(
    ("precision", "most"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 0.02), ("int8", 0.05)]
)
def test_a_layer_in_each_precision(precision: str, most: float) -> None:
    torch.manual_seed(0)
    layer, tokens = nn.Linear(64, 96), torch.randn(7, 64)
    linear = linear_of(layer.weight, layer.bias, precision)
    found = linear(tokens.bfloat16() if precision == "bfloat16" else tokens).float()
    expected = layer(tokens).detach()
    assert float((found - expected).norm() / expected.norm()) < most


@pytest.mark.parametrize("kind", ["decoder", "gpt2", "gemma2"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_every_network_writes_in_every_precision(kind: str, precision: str) -> None:
    engine = engine_of(kind, precision=precision)
    found = run(engine, [Order("a", [5, 6], greedy(5)), Order("b", list(range(30)), greedy(5))])
    assert [len(outputs) for outputs in found.values()] == [5, 5]
    assert engine.precision == precision


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_a_lighter_network_is_near_and_leaves_the_other_alone(kind: str) -> None:
    network = network_of(kind)
    ids, offsets = torch.arange(20), torch.tensor([0, 20])
    with torch.no_grad():
        before = network.hidden(ids, PackedCausal(offsets))
        near = lighter(network, "float16").hidden(ids, PackedCausal(offsets))
        after = network.hidden(ids, PackedCausal(offsets))
    assert torch.equal(before, after)
    assert 0 < float((near - before).norm() / before.norm()) < 0.01


def test_the_loss_is_that_of_the_network_and_a_rise_is_refused() -> None:
    network = network_of("decoder")
    assert abs(check_loss(network, fast_form(network, "float16"), ROWS, 0.01)) < 0.01
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.model.norm.weight.mul_(3)
    assert loss(broken, ROWS) > loss(network, ROWS)
    with pytest.raises(ConfigError, match="the loss on the given texts rises from"):
        check_loss(network, broken, ROWS, 0.02)
    assert abs(engine_of(precision="float16").check_loss(ROWS)) < 0.01


def test_precisions_that_a_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick("float32", CPU) == "float32"
    with monkeypatch.context() as patch:
        patch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"], raising=False)
        with pytest.raises(ConfigError, match="x86 processors only"):
            pick("int8", CPU)
    with pytest.raises(ConfigError, match="does not fit into 16 bits"):
        linear_of(torch.full((2, 2), 1e6), None, "float16")
