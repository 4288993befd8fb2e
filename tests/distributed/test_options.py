"""Options of the strategies, averaged weights, and what workers say of their time: each in a short run of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import member
import pytest
import torch
from options_member import DECAY, INNER_STEPS, PRECISE, ROWS, SLOW_SECONDS
from processes import run_workers
from safetensors.torch import load_file
from torch import Tensor

from fastserve.config import DistributedConfig
from fastserve.distributed.world import ALONE

MEMBER = str(Path(__file__).with_name("options_member.py"))
STEPS = 12
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    run_workers(2, [MEMBER, str(folder)], seconds=280)
    return folder


def told(out: Path, rank: int, case: str) -> Any:
    return json.loads((out / f"{rank}.json").read_text("utf-8"))[case]


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The distance of weights, where that of the expected ones from zero is 1."""
    assert found.keys() == expected.keys()
    distance = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return (distance / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


@pytest.mark.parametrize("network", PRECISE)
def test_bf16_halves_what_travels_and_keeps_the_weights_in_fp32(out: Path, network: str) -> None:
    whole, half = (told(out, 0, f"{network}-{precision}") for precision in ("fp32", "bf16"))
    for kind in ("weights", "gradients", "evaluation"):
        assert half[kind] == whole[kind] / 2, kind
    assert half["rows"] == whole["rows"], "of a table that is not in shards"
    weights = load_file(out / f"{network}-bf16.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert 0 < apart(weights, load_file(out / f"{network}-fp32.safetensors")) < 0.01


@pytest.mark.parametrize("network", PRECISE)
def test_shards_that_are_kept_aside_are_the_same_numbers(out: Path, network: str) -> None:
    offloaded, kept = (load_file(out / f"{network}-{case}.safetensors") for case in ("offload", "fp32"))
    assert apart(offloaded, kept) == 0


def test_a_network_that_begins_without_memory_may_keep_its_shards_aside(out: Path) -> None:
    assert apart(load_file(out / "empty.safetensors"), load_file(out / "transformer-fp32.safetensors")) < 1e-6


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The averaged weights of one worker."""
    plain = {"optimizer": "sgd", "gradient_clip": 0.0, "learning_rate": 0.1, "average": DECAY, "keep": "last"}
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member, "ROWS", ROWS)
        run = member.run_of("transformer", member.NETWORKS["transformer"], DistributedConfig(), ALONE, folder, **plain)
    for _ in run.events():
        pass
    return run.weights()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "diloco"])
def test_averaged_weights_are_those_of_one_worker(out: Path, averaged: dict[str, Tensor], strategy: str) -> None:
    """Where diloco exchanges in every step, by an outer step that is plain."""
    assert apart(load_file(out / f"average-{strategy}.safetensors"), averaged) < 1e-5


def test_workers_that_train_alone_average_what_they_have_in_common(out: Path) -> None:
    found = load_file(out / "diloco.safetensors")
    names = [name.removeprefix("average/") for name in found if name.startswith("average/")]
    expected = {name: found[f"0/{name}"] for name in names}
    for step in range(INNER_STEPS, STEPS + 1, INNER_STEPS):
        decay = min(DECAY, (1 + step) / (10 + step)) ** INNER_STEPS
        expected = {name: decay * value + (1 - decay) * found[f"{step}/{name}"] for name, value in expected.items()}
    assert apart({name: found[f"average/{name}"] for name in names}, expected) < 1e-5


def test_an_average_goes_on_after_a_cut(out: Path) -> None:
    assert apart(load_file(out / "fsdp-cut-resumed.safetensors"), load_file(out / "fsdp.safetensors")) == 0
    whole = {
        n.partition("/")[2]: v for n, v in load_file(out / "diloco.safetensors").items() if n.startswith("average")
    }
    assert apart(load_file(out / "diloco-cut-resumed.safetensors"), whole) == 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "diloco"])
def test_who_waits_and_who_computes_is_told_apart(out: Path, strategy: str) -> None:
    waits, slow = (told(out, rank, f"slow-{strategy}") for rank in range(2))
    assert slow["computing"] > STEPS * SLOW_SECONDS
    assert waits["computing"] < slow["computing"]
    assert waits["exchange_share"] > slow["exchange_share"] > 0
    exchanged = {name: value for name, value in waits["seconds"].items() if name.startswith("exchange ")}
    if strategy != "ddp":
        assert abs(exchanged["exchange backward"]) < 1e-6, "what waits has a name of its own"
    assert "the others waited for worker 1" in slow["line"]


def test_what_shards_send_is_counted(out: Path) -> None:
    """Half of the weights goes to the other worker, those of blocks twice in a step; of the gradients a half to be
    summed, and as much again since gloo tells everybody the sums."""
    figures = told(out, 0, "slow-fsdp")
    assert {"exchange weights", "exchange gradients", "exchange evaluation"} <= figures["seconds"].keys()
    whole, blocks = (4 * number for number in figures["parameters"])
    shards = whole - 4 * 60 * 32  # the table is not in shards
    trial = shards / 2  # before the first step a forward pass finds out what memory the rows take
    sent = figures["sent_for"]
    assert sent["weights"] == pytest.approx(STEPS * (shards + blocks) / 2 + trial, rel=0.01)
    assert sent["gradients"] == pytest.approx(STEPS * shards, rel=0.01)
