"""Workers that train alone and then move together: as a plain simulation does, and as ddp where they can."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import diloco_member
import pytest
import torch
from processes import run_workers
from safetensors.torch import load_file
from torch import Tensor, nn

from fastserve.distributed.touches import Touches
from fastserve.distributed.world import ALONE, World
from fastserve.training.groups import use_sparse_gradients
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
    touched = [noted(run) for run in runs]
    common = [parameter.detach().clone().requires_grad_() for parameter in runs[0].network.parameters()]
    outer = torch.optim.SGD(common, lr=1.0, momentum=0.5, nesterov=True)
    plan = [rows for epoch in range(2) for rows in runs[0].plan.epoch(epoch)]
    assert len(plan) == STEPS
    for step, rows in enumerate(plan, start=1):
        for rank, run in enumerate(runs):
            part = World(rank, WORKERS).part(rows)
            run.step(run.train.batch(part.rows), part)
        if step in EXCHANGES:
            exchange(runs, common, outer, touched)
    return {name: value.detach() for name, value in runs[0].network.state_dict().items()}


def noted(run: TrainingRun) -> list[Tensor]:
    """For each step from now on, which rows (words,) of the one table it touches."""
    steps: list[Tensor] = []

    def note(tables: Iterable[nn.Parameter], normalized: bool) -> None:
        for table in tables:
            assert normalized
            assert table.grad is not None
            rows = set(table.grad._indices()[0].tolist())
            steps.append(torch.tensor([row in rows for row in range(len(table))], dtype=torch.float64))

    run.optimizers.reduce = note
    return steps


def as_often(touched: list[list[Tensor]]) -> Tensor:
    """(words, 1): what the mean movement of rows is multiplied by. touched: of each worker, its steps' rows."""
    shares = [torch.stack(steps).mean(0) for steps in touched]
    nobody = torch.ones_like(shares[0])
    for share in shares:
        nobody = nobody * (1 - share)
    mean = torch.stack(shares).mean(0)
    return torch.where(mean > 0, (1 - nobody) / mean, 1.0).float()[:, None]


def exchange(
    runs: list[TrainingRun], common: list[Tensor], outer: torch.optim.Optimizer, touched: list[list[Tensor]]
) -> None:
    columns = list(zip(common, *(run.network.parameters() for run in runs), strict=True))
    tables = use_sparse_gradients(runs[0].network)
    names = [name for name, _ in runs[0].network.named_parameters()]
    for name, (parameter, *own) in zip(names, columns, strict=True):
        moved = torch.stack([parameter.detach() - weight.detach() for weight in own]).mean(0)
        parameter.grad = moved * as_often(touched) if name in tables else moved
    for steps in touched:
        steps.clear()
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


@pytest.mark.parametrize(("compression", "share"), [("bf16", 1 / 2), ("int8", 1 / 4)])
def test_movements_in_few_bits_lose_little_and_less_travels(found: Path, compression: str, share: float) -> None:
    sent = json.loads((found / "bytes.json").read_text("utf-8"))
    assert 0 < apart(found, compression, load_file(found / "seldom.safetensors")) < 0.02
    assert sent[compression]["weights"] == pytest.approx(sent["seldom"]["weights"] * share, rel=0.1)
    assert sent["seldom"]["weights"] < sent["ddp"]["gradients"], "four exchanges and not ten"


def test_a_row_moves_as_often_as_any_worker_touches_it() -> None:
    """Rows: touched always by both; always by one; once in ten steps by one; by one in half and the other in a fifth
    of them; never."""
    workers, steps = [[10, 10, 1, 5, 0], [10, 0, 0, 2, 0]], 10
    means = torch.stack([columns(counts, steps) for counts in workers]).mean(0)
    found = Touches.as_often(means, len(workers)).tolist()
    assert found == pytest.approx([1, 2, 2, (1 - 0.5 * 0.8) / 0.35, 1])
    rounded = Touches.as_often(means.bfloat16().float(), len(workers)).tolist()
    assert rounded == pytest.approx(found, rel=0.01)


def columns(counts: list[int], steps: int) -> Tensor:
    """What a worker tells whose steps touched the rows so often."""
    table = nn.Parameter(torch.zeros(len(counts), 2))
    touches = Touches(table)
    for step in range(steps):
        rows = [row for row, count in enumerate(counts) if step < count] * 2  # a text may have a word twice
        values = torch.ones(len(rows), 2)
        table.grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, table.shape, check_invariants=False)
        touches.note()
    return touches.columns(torch.arange(len(counts)))
