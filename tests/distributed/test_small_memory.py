"""A model that is too large for one worker trains in shards, by the command, where no process gets more memory."""

from __future__ import annotations

import functools
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import finished, start

WEIGHTS = 100e6
"""Bytes of a network of eight blocks. Training keeps six times as much: gradients, moments, best and first weights."""
MOST = 800e6
"""Bytes of private memory that a process may have. Python, torch and their threads take 300 MB of it; the first worker
needs room for the whole network as well, to write it down in the end."""
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""Said by the thread that asked for too much, and by the command where it is the one that trains."""
FEW_BUFFERS = {"OPENBLAS_NUM_THREADS": "1"}
NETWORK = ["layers=8", "dim=512", "heads=4", "feedforward=2048"]


def words(folder: Path) -> list[str]:
    data = folder / "texts.tsv"
    lines = [f"{'good' if row % 3 else 'bad'}\tleft{row // 8} right{row % 8}\n" for row in range(64)]
    data.write_text("label\ttext\n" + "".join(lines), "utf-8")
    options = [f"model.options.{option}" for option in NETWORK]
    settings = ["train.epochs=1", "train.batch=16", "train.threads=1", "train.checkpoint_seconds=3600"]
    return ["train", "--data", str(data), "--network", "transformer", *options, *settings, "text.min_count=1"]


def limited() -> Callable[..., subprocess.Popen[str]]:
    """Starts a command whose processes get so much memory and no more."""
    limit = int(MOST)
    return functools.partial(
        subprocess.Popen, preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit))
    )


@pytest.mark.heavy
def test_one_worker_cannot_train_it(tmp_path: Path) -> None:
    process = start(tmp_path, *words(tmp_path), env=FEW_BUFFERS, run=limited())
    assert process.stderr is not None
    try:
        assert any(said in line for line in process.stderr for said in OUT_OF_MEMORY)
    finally:
        process.kill()  # without memory its end may be long
        process.communicate()


@pytest.mark.heavy
def test_four_workers_train_it_in_shards(tmp_path: Path) -> None:
    shared = [
        "--workers",
        "4",
        "distributed.strategy=fsdp",
        "distributed.restarts=0",
        "distributed.timeout_seconds=240",
    ]
    weights, said = finished(start(tmp_path, *words(tmp_path), *shared, env=FEW_BUFFERS, run=limited()))
    assert sum(value.nbytes for value in weights.values()) > WEIGHTS
    assert "training ended at step 4: all epochs done" in said
