"""Language models on workers that train alone and then move together, and on workers that never hold the whole."""

from __future__ import annotations

from pathlib import Path

import language_member
import numpy as np
import pytest
import torch
from processes import run_workers
from safetensors.torch import load_file
from torch import Tensor

from fastserve.config import DistributedConfig
from fastserve.distributed.diloco import DilocoOptions
from fastserve.distributed.world import ALONE, World
from fastserve.training.plans import counts_of

MEMBER = str(Path(__file__).with_name("language_member.py"))
WORKERS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    run_workers(WORKERS, [MEMBER, str(folder)], seconds=300)
    return folder


def simulated(folder: Path) -> dict[str, Tensor]:
    """diloco in one process, by torch's own outer optimizer."""
    runs = [language_member.run_of(DistributedConfig(), ALONE, folder / str(rank)) for rank in range(WORKERS)]
    common = [parameter.detach().clone().requires_grad_() for parameter in runs[0].network.parameters()]
    options = DilocoOptions(**language_member.EXCHANGES)
    outer = torch.optim.SGD(common, lr=options.outer_rate, momentum=options.outer_momentum, nesterov=True)
    epochs = [runs[0].plan.epoch(number) for number in range(2)]
    every, ends = options.inner_steps, {len(epochs[0]), len(epochs[0]) + len(epochs[1])}
    alone = 0
    for step, rows in enumerate([rows for epoch in epochs for rows in epoch], start=1):
        for rank, run in enumerate(runs):
            part = World(rank, WORKERS).part(rows, counts_of(run.plan, rows))
            run.step(run.train.batch(part.rows), part)
        alone += 1
        if alone == every or step in ends:  # before an evaluation too
            exchange([list(run.network.parameters()) for run in runs], common, outer)
            alone = 0
    return {name: value.detach() for name, value in runs[0].network.state_dict().items()}


@torch.no_grad()
def exchange(workers: list[list[torch.nn.Parameter]], common: list[Tensor], outer: torch.optim.Optimizer) -> None:
    """An outer step along the mean movement, which all workers then take up."""
    for weight, *own in zip(common, *workers, strict=True):
        weight.grad = torch.stack([weight - each for each in own]).mean(0)
    outer.step()
    for weight, *own in zip(common, *workers, strict=True):
        for each in own:
            each.copy_(weight)


def test_diloco_is_what_a_plain_simulation_finds(found: Path, tmp_path: Path) -> None:
    weights = load_file(found / "diloco.safetensors")
    for name, expected in simulated(tmp_path).items():
        assert (weights[name] - expected).norm() <= 1e-4 * expected.norm(), name


def test_shards_of_a_network_that_was_never_whole_are_those_of_one_that_was(found: Path) -> None:
    whole, empty = (load_file(found / f"{name}.safetensors") for name in ("fsdp", "fsdp-empty"))
    assert whole.keys() == empty.keys()
    assert all(torch.equal(whole[name], empty[name]) for name in whole)


def test_workers_share_what_answers_are_compared_with(found: Path) -> None:
    expected = language_member.reference_of(found, ALONE, "alone.npy")
    for rank in range(WORKERS):
        for each in np.load(found / f"reference-{rank}.npy"):  # computed, and read
            np.testing.assert_allclose(each, expected, rtol=1e-5)
    assert (expected < 0).all()
