"""What a plan measures of a run: all of it, on one worker and beside others, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from fastserve.config import Config, load_config
from fastserve.distributed.cost import Work
from fastserve.distributed.world import ALONE
from fastserve.errors import TrainingError
from fastserve.training import course
from fastserve.training.calibrate import STEPS, crowding, measure, typical_batches
from fastserve.training.loop import TrainingRun
from fastserve.training.neighbour import neighbours
from fastserve.training.runs import RunFolder

SMALL = ["model.network=transformer", *(f"model.options.{it}" for it in ("layers=2", "dim=32", "heads=2"))]


def started(folder: Path, *words: str) -> tuple[Config, TrainingRun, Path]:
    data = folder / "texts.tsv"
    lines = [f"{'good' if row % 3 else 'bad'}\tleft{row // 8} right{row % 8}\n" for row in range(80)]
    data.write_text("label\ttext\n" + "".join(lines), "utf-8")
    config = load_config(None, [f"data.train={data}", "text.min_count=1", "train.batch=16", *words])
    task, runs = course.pick(config.task), RunFolder(folder / "run")
    task.prepare(config, runs.data, lambda: None)
    return config, task.start(config, runs, ALONE), runs.path


def measured(folder: Path, *words: str) -> Work:
    return measure(started(folder, *words)[1])


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_what_fsdp_does_besides_is_measured_alone(tmp_path: Path) -> None:
    found = measured(tmp_path, *SMALL)
    assert found.rows == 16
    assert found.blocks == 2
    assert found.in_blocks < found.dense
    assert 0 < found.sharding < 1
    assert found.per_row > 0
    assert not dist.is_initialized()


def test_the_batches_that_are_measured_go_from_short_to_long(tmp_path: Path) -> None:
    _, run, _ = started(tmp_path, *SMALL, "text.max_length=8")
    batches = typical_batches(run)
    sizes = [sum(len(ragged.values) for ragged in run.train.batch(rows).inputs.values()) for rows in batches]
    assert len(batches) == STEPS
    assert sizes == sorted(sizes)
    every = [set(rows.tolist()) for epoch in (0, 1) for rows in run.plan.epoch(epoch)]
    assert all(set(rows.tolist()) in every for rows in batches)


def test_others_compute_beside_a_measurement_and_then_end(tmp_path: Path) -> None:
    config, run, folder = started(tmp_path, *SMALL)
    before = children()
    with neighbours(config, folder, 1):
        (beside,) = set(children()) - set(before)
        first, later = (processor_seconds(beside, run) for _ in range(2))
        assert later > first
    assert children() == before
    assert crowding(run, lambda: neighbours(config, folder, 1)) >= 1


def processor_seconds(process: str, run: TrainingRun) -> float:
    """Of a process, after some steps of our own."""
    for rows in typical_batches(run):
        run.step(run.train.batch(rows))
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def test_what_cannot_compute_beside_says_why(tmp_path: Path) -> None:
    config, _, _ = started(tmp_path, *SMALL)
    with pytest.raises(TrainingError, match=r"failed: .*nowhere"), neighbours(config, tmp_path / "nowhere", 1):
        pass
