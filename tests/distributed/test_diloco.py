"""Workers that train alone and then move together: as a plain simulation does, and as ddp where they can."""

from __future__ import annotations

import json
from pathlib import Path

import diloco_member
import pytest
import torch
from processes import run_workers
from safetensors.torch import load_file
from torch import Tensor

from fastserve.distributed.world import ALONE, World
from fastserve.training.loop import TrainingRun

MEMBER = str(Path(__file__).with_name("diloco_member.py"))
WORKERS, STEPS = 2, 10
EXCHANGES = (3, 5, 8, 10)
"""After every third step, and before the evaluations at steps 5 and 10."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diloco")
    run_workers(WORKERS, [MEMBER, str(folder)], seconds=300)
    return folder


def simulated(folder: Path) -> dict[str, Tensor]:
    """The same in one process, by torch's own optimizer, with every table as a whole."""
    runs = [diloco_member.start(ALONE, folder / str(rank), "ddp", {}) for rank in range(WORKERS)]
    common = [parameter.detach().clone().requires_grad_() for parameter in runs[0].network.parameters()]
    outer = torch.optim.SGD(common, lr=1.0, momentum=0.5, nesterov=True)
    plan = [rows for epoch in range(2) for rows in runs[0].plan.epoch(epoch)]
    assert len(plan) == STEPS
    for step, rows in enumerate(plan, start=1):
        for rank, run in enumerate(runs):
            part = World(rank, WORKERS).part(rows)
            run.step(run.train.batch(part.rows), part)
        if step in EXCHANGES:
            exchange(runs, common, outer)
    return {name: value.detach() for name, value in runs[0].network.state_dict().items()}


def exchange(runs: list[TrainingRun], common: list[Tensor], outer: torch.optim.Optimizer) -> None:
    columns = list(zip(common, *(run.network.parameters() for run in runs), strict=True))
    for parameter, *own in columns:
        parameter.grad = torch.stack([parameter.detach() - weight.detach() for weight in own]).mean(0)
    outer.step()
    with torch.no_grad():
        for parameter, *own in columns:
            for weight in own:
                weight.copy_(parameter)


def apart(folder: Path, one: str, other: dict[str, Tensor]) -> float:
    weights = load_file(folder / f"{one}.safetensors")
    return max(float((weights[name] - value).norm() / value.norm()) for name, value in other.items())


def test_it_is_what_a_plain_simulation_finds(found: Path, tmp_path: Path) -> None:
    assert apart(found, "seldom", simulated(tmp_path)) < 1e-4


def test_an_exchange_after_every_plain_step_is_ddp(found: Path) -> None:
    assert apart(found, "every-step", load_file(found / "ddp.safetensors")) < 1e-5


def test_a_run_that_was_cut_ends_with_the_same_weights(found: Path) -> None:
    assert apart(found, "resumed", load_file(found / "seldom.safetensors")) == 0


def test_movements_in_bf16_lose_little_and_halve_what_travels(found: Path) -> None:
    sent = json.loads((found / "bytes.json").read_text("utf-8"))
    assert 0 < apart(found, "bf16", load_file(found / "seldom.safetensors")) < 0.02
    assert sent["bf16"]["weights"] == pytest.approx(sent["seldom"]["weights"] / 2, rel=0.05)
    assert sent["seldom"]["weights"] < sent["ddp"]["gradients"], "four exchanges and not ten"
