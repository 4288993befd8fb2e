"""`fastserve train --workers`: the same command and the same answer, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["train", "--data", str(ROOT / "examples/reviews.tsv"), "--network", "textcnn", "model.options.dropout=0"]


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "FASTSERVE_HOME": str(home)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "fastserve", *COMMAND, *words, "--json"], env=environment, **pipes)


def finished(process: subprocess.Popen[str]) -> tuple[dict[str, torch.Tensor], str]:
    """The weights, and what was said."""
    out, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return load_file(Path(json.loads(out.splitlines()[-1])["folder"]) / "model.safetensors"), said


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 2e-3 * value.norm() + 1e-6, name


def test_two_workers_give_the_model_of_one(tmp_path: Path) -> None:
    one, _ = finished(start(tmp_path / "one"))
    two, said = finished(start(tmp_path / "two", "--workers", "2"))
    assert_close(two, one)
    assert said.count("epoch 1,") == 1, "one worker speaks for all"
    assert "Warning" not in said


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    words = ["--workers", "2", "train.epochs=8", "train.early_stopping=0", "train.checkpoint_seconds=0"]
    whole, _ = finished(start(tmp_path / "whole", *words))
    process = start(tmp_path / "cut", *words)
    os.kill(worker_of(process, rank=1, after=tmp_path / "cut"), signal.SIGKILL)
    cut, said = finished(process)
    assert "was killed by SIGKILL" in said
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_failure_that_would_come_again_is_said_once(tmp_path: Path) -> None:
    process = start(tmp_path, "--workers", "2", "train.learning_rate=1e30", "train.gradient_clip=0")
    _, said = process.communicate(timeout=280)
    assert process.returncode == 1
    assert said.count("the loss became") == 1
    assert "Traceback" not in said


def worker_of(process: subprocess.Popen[str], *, rank: int, after: Path) -> int:
    """The process id of a worker, once the run has a checkpoint."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if list(after.glob("runs/*/checkpoints/0*")):
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split():
                if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text("utf-8").split("\0"):
                    return int(child)
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no worker was found: {process.communicate()}")
