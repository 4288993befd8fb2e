"""What a plan measures of a run: all of it, on one worker, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from fastserve.config import load_config
from fastserve.distributed.cost import Work
from fastserve.distributed.world import ALONE
from fastserve.training import course
from fastserve.training.calibrate import measure
from fastserve.training.runs import RunFolder


def measured(folder: Path, *words: str) -> Work:
    data = folder / "texts.tsv"
    lines = [f"{'good' if row % 3 else 'bad'}\tleft{row // 8} right{row % 8}\n" for row in range(80)]
    data.write_text("label\ttext\n" + "".join(lines), "utf-8")
    config = load_config(None, [f"data.train={data}", "text.min_count=1", "train.batch=16", *words])
    task, runs = course.pick(config.task), RunFolder(folder / "run")
    task.prepare(config, runs.data, lambda: None)
    return measure(task.start(config, runs, ALONE))


def test_what_fsdp_does_besides_is_measured_alone(tmp_path: Path) -> None:
    shape = ["model.options.layers=2", "model.options.dim=32", "model.options.heads=2"]
    found = measured(tmp_path, "model.network=transformer", *shape)
    assert found.rows == 16
    assert found.blocks == 2
    assert found.in_blocks < found.dense
    assert 0 < found.sharding < 1
    assert found.per_row > 0
    assert not dist.is_initialized()
