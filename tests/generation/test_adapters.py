"""Adapters side by side: each text is that of a network with its adapter alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from engines import greedy, ids, network_of, run

from fastserve.errors import ConfigError, NotFoundError
from fastserve.generation.engine import Engine
from fastserve.generation.orders import EngineOptions, Order
from fastserve.generation.reference import generate
from fastserve.models.lora import LoraOptions, adapter_weights, add_adapters, load_adapter, save_adapter

pytest.importorskip("peft")
PROMPTS = [[5, 17, 200], list(range(20, 50)), [9]]
FULL = EngineOptions(precision="float32", profile_seconds=0)


def make(kind: str, folder: Path, *, rank: int, seed: int, targets: list[str] | None = None) -> Path:
    """An adapter that changes much."""
    network = copy.deepcopy(network_of(kind))
    add_adapters(network, LoraOptions(rank=rank, alpha=3.0, targets=targets or "auto"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_weights(network).values():
            tensor.normal_(std=0.3)
    save_adapter(network, folder)
    return folder


def alone(kind: str, folder: Path | None) -> list[list[int]]:
    network = copy.deepcopy(network_of(kind))
    if folder is not None:
        load_adapter(network, folder)
    return [one.ids for one in generate(network.eval(), PROMPTS, greedy(12), eos=[])]


@pytest.mark.parametrize("kind", ["decoder", "gpt2", "gemma2"])
def test_each_text_is_that_of_its_adapter_alone(kind: str, tmp_path: Path) -> None:
    some = ["c_attn", "c_fc"] if kind == "gpt2" else ["k_proj", "v_proj", "down_proj"]
    folders = {
        "all": make(kind, tmp_path / "all", rank=4, seed=1),
        "some": make(kind, tmp_path / "some", rank=2, seed=2, targets=some),
    }
    engine = Engine(network_of(kind), None, FULL, adapters=folders)
    names = [None, "all", "some"]
    found = run(
        engine,
        [
            Order(f"{name} {place}", prompt, greedy(12), adapter=name)
            for place, prompt in enumerate(PROMPTS)
            for name in names
        ],
    )
    expected = {name: alone(kind, folders.get(name or "")) for name in names}
    assert len({str(texts) for texts in expected.values()}) == 3
    for name in names:
        assert [ids(found[f"{name} {place}", 0]) for place in range(len(PROMPTS))] == expected[name]


def test_what_an_adapter_read_is_not_told_to_the_base(tmp_path: Path) -> None:
    folder = make("decoder", tmp_path / "a", rank=2, seed=1)
    engine = Engine(network_of("decoder"), None, FULL, adapters={"a": folder})
    outputs = [run(engine, [Order("x", PROMPTS[1], greedy(), adapter=name)])["x", 0] for name in ("a", None, "a")]
    assert [one[0].cached for one in outputs] == [0, 0, 16]


def test_adapters_that_cannot_be_served(tmp_path: Path) -> None:
    engine = Engine(
        network_of("decoder"), None, FULL, adapters={"poet": make("decoder", tmp_path / "a", rank=2, seed=1)}
    )
    with pytest.raises(NotFoundError, match="did you mean 'poet'"):
        engine.add(Order("x", [1], greedy(), adapter="poets"))
    with pytest.raises(ConfigError, match="cannot be read as a LoRA adapter"):
        Engine(network_of("decoder"), None, FULL, adapters={"b": tmp_path / "none"}).prepare()
    with pytest.raises(ConfigError, match="has no linear layer"):
        Engine(
            network_of("decoder"), None, FULL, adapters={"c": make("gpt2", tmp_path / "c", rank=2, seed=1)}
        ).prepare()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ConfigError, match="use_dora"):
        Engine(network_of("decoder"), None, FULL, adapters={"d": tmp_path / "a"}).prepare()
