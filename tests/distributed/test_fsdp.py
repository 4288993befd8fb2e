"""Weights in shards: less memory than the whole takes, the same numbers from the start, the same bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import TEXTCNN, finished, start
from processes import run_workers
from test_several_workers import assert_close
from torch import nn

from fastserve import device
from fastserve.distributed.fsdp import Fsdp, FsdpOptions, blocks
from fastserve.distributed.world import World
from fastserve.models import NetworkShape, build

LARGE_MEMBER = str(Path(__file__).with_name("large_member.py"))


@pytest.mark.heavy
def test_a_worker_takes_a_fraction_of_the_whole(tmp_path: Path) -> None:
    run_workers(4, [LARGE_MEMBER, str(tmp_path)], seconds=240)
    for rank in range(4):
        found = json.loads((tmp_path / f"{rank}.json").read_text("utf-8"))
        weights = found["whole"]
        assert weights > 190e6
        assert found["started"] < weights / 2, "a quarter, and one tensor"
        assert found["trained"] < 1.6 * weights, "a quarter of weights, gradients and two moments (4 times the weights)"


def test_the_command_gives_the_model_of_one_worker(tmp_path: Path) -> None:
    words = [*TEXTCNN, "model.network=transformer", "model.options.dim=32", "model.options.layers=2", "train.epochs=2"]
    words.append("train.precision=fp32")
    one, _ = finished(start(tmp_path / "one", *words))
    two, said = finished(start(tmp_path / "two", *words, "--workers", "2", "distributed.strategy=fsdp"))
    assert {name: value.shape for name, value in two.items()} == {name: value.shape for name, value in one.items()}
    assert_close(two, one)
    assert "Warning" not in said


@pytest.mark.parametrize(
    ("free", "allowed", "short"),
    [(None, None, False), (10**6, None, False), (1_000, None, True), (10**6, 1_000, True), (10**6, 10**6, False)],
)
def test_freed_memory_is_kept_where_there_is_enough(
    free: int | None, allowed: int | None, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights take 800 bytes; each of two workers of this machine has half of what is free."""
    monkeypatch.setattr(device, "free_memory", lambda _: free)
    monkeypatch.setattr(device, "allowed_memory", lambda: allowed)
    strategy = Fsdp(FsdpOptions(), World(0, 2, 0, 2))
    assert strategy._short_of_memory(nn.Linear(200, 1, bias=False)) is short


def test_blocks_are_what_computes_as_a_whole() -> None:
    encoder = build("transformer", {"layers": 3, "dim": 8, "heads": 2}, NetworkShape({"tokens": 9}, 2))
    convolutions = build("textcnn", {}, NetworkShape({"tokens": 9}, 2))
    experts = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]))])
    assert len(list(blocks(encoder))) == 3
    assert not list(blocks(convolutions)), "a convolution is a place for weights"
    assert list(blocks(nn.Sequential(experts))) == list(experts), "not the lists inside"


def test_first_values_are_those_of_the_constructor() -> None:
    options, shape = {"layers": 2, "dim": 8, "heads": 2, "pooling": "cls"}, NetworkShape({"tokens": 9}, 2)
    torch.manual_seed(3)
    whole = build("transformer", options, shape)
    after = torch.rand(1)
    with torch.device("meta"):
        empty = build("transformer", options, shape)
    torch.manual_seed(3)
    values = dict(empty.first_values())
    assert torch.equal(torch.rand(1), after), "as many numbers were drawn"
    expected = dict(whole.named_parameters()) | dict(whole.named_buffers())
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], value) for name, value in expected.items())
