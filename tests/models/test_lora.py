"""LoRA: only adapters change, merged and apart give the same logits, and `peft` reads what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from causal_samples import VOCABULARY, decoder, row_logits, rows, save
from torch import nn

from fastserve.errors import ConfigError
from fastserve.models import NetworkShape, build
from fastserve.models.attention import CachedCausal, PackedCausal
from fastserve.models.causal import CausalNetwork
from fastserve.models.lora import (
    LoraOptions,
    adapter_weights,
    add_adapters,
    base_weights,
    load_adapter,
    merge,
    save_adapter,
    without_adapters,
)

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def gpt2(folder: Path) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = transformers.AutoConfig.for_model("gpt2", initializer_range=0.2, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return build(str(folder), {}, NetworkShape({"tokens": VOCABULARY}, VOCABULARY), causal=True)


def network_of(kind: str, tmp_path: Path) -> Any:
    return gpt2(tmp_path / "gpt2") if kind == "gpt2" else decoder(form=kind)


def train(network: nn.Module) -> None:
    """A few large steps."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.5)
    for _ in range(3):
        logits = network({"tokens": rows()})
        nn.functional.cross_entropy(logits[:-1], rows().values[1:].long()).backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(network: nn.Module) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        found: torch.Tensor = network({"tokens": rows()})
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_only_adapters_change_and_merging_them_changes_no_logits(kind: str, tmp_path: Path) -> None:
    network = network_of(kind, tmp_path)
    first, weights = logits(network), {name: value.clone() for name, value in network.state_dict().items()}
    add_adapters(network, LoraOptions(rank=4, alpha=8))
    assert isinstance(network, CausalNetwork)
    torch.testing.assert_close(logits(network), first)
    train(network)
    apart = logits(network)
    assert not torch.allclose(apart, first)
    assert base_weights(network).keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in base_weights(network).items())
    with without_adapters(network):
        torch.testing.assert_close(logits(network), first)
    torch.testing.assert_close(logits(network), apart)
    merge(network)
    assert network.state_dict().keys() == weights.keys()
    assert all(parameter.requires_grad for parameter in network.parameters())
    torch.testing.assert_close(logits(network), apart, atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # of peft's call of transformers
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_loads_the_adapter_on_the_saved_base(kind: str, tmp_path: Path) -> None:
    network = network_of(kind, tmp_path)
    base = save(network, tmp_path / "base")
    add_adapters(network, LoraOptions(rank=3, alpha=6))
    train(network)
    save_adapter(network, tmp_path / "adapter", base=str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    torch.testing.assert_close(row_logits(theirs, rows()), logits(network), atol=2e-5, rtol=2e-5)


def test_an_adapter_is_loaded_into_a_network_again_and_only_into_one_that_it_fits(tmp_path: Path) -> None:
    network = decoder()
    add_adapters(network, LoraOptions(rank=3, targets=["q_proj", "down_proj"]))
    assert len(adapter_weights(network)) == 2 * 2 * 2
    train(network)
    save_adapter(network, tmp_path)
    again = decoder()
    load_adapter(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(network))
    with pytest.raises(ConfigError, match="does not fit"):
        load_adapter(decoder(layers=3), tmp_path)
    with pytest.raises(ConfigError, match="no adapters to save"):
        save_adapter(decoder(), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"cannot be read.*adapter_config\.json"):
        load_adapter(decoder(), tmp_path / "none")


def test_gradients_reach_adapters_through_the_reference_entered_before_the_backward_pass() -> None:
    network = decoder()
    add_adapters(network, LoraOptions(rank=2))
    train(network)
    found = network({"tokens": rows()})
    with without_adapters(network), torch.no_grad():
        reference = network({"tokens": rows()})
    (found - reference).square().sum().backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)
    assert not any(parameter.grad is not None for parameter in network.parameters() if not parameter.requires_grad)


def test_an_adapted_network_decodes() -> None:
    network, tokens = decoder(), rows([9])
    add_adapters(network, LoraOptions(rank=2))
    train(network)
    ids = tokens.values.long()
    cache = CachedCausal(network.layers, 1)
    steps = torch.cat([network.hidden(ids[place : place + 1], cache.extend([1])) for place in range(9)])
    torch.testing.assert_close(steps, network.hidden(ids, PackedCausal(tokens.offsets)), atol=1e-5, rtol=1e-5)


def test_a_target_that_is_no_layer_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'q_proj'"):
        add_adapters(decoder(), LoraOptions(targets=["q_pro"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_base_of_few_bits_is_refused_where_no_device_can_hold_it() -> None:
    with pytest.raises(ConfigError, match="4bit needs a CUDA device"):
        add_adapters(decoder(), LoraOptions(base="4bit"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("base", ["8bit", "4bit"])
def test_a_base_of_few_bits_is_near_the_full_one_and_trains(base: Any) -> None:
    pytest.importorskip("bitsandbytes")
    network = decoder(dim=64, feedforward=128)
    first = logits(network)
    add_adapters(network, LoraOptions(rank=4, base=base))
    network.cuda()
    found = network({"tokens": rows().to("cuda")})
    assert torch.nn.functional.cosine_similarity(found.cpu().float(), first, dim=-1).mean() > 0.9
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    with pytest.raises(ConfigError, match="takes no merged adapter"):
        merge(network)
