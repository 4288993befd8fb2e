"""`fastserve train --workers`: the same command and the same answer, whatever dies on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from commands import TEXTCNN, assert_same, checkpoint, failed, finished, start, wait_for, worker_of

STOPS = ["train.gradient_clip=0", "train.on_divergence=stop"]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 2e-3 * value.norm() + 1e-6, name


def test_two_workers_give_the_model_of_one(tmp_path: Path) -> None:
    words = [*TEXTCNN, "train.precision=fp32"]
    one, _ = finished(start(tmp_path / "one", *words))
    two, said = finished(start(tmp_path / "two", *words, "--workers", "2"))
    assert_close(two, one)
    assert said.count("epoch 1,") == 1, "one worker speaks for all"
    assert "Warning" not in said


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    words = [*TEXTCNN, "--workers", "2", "train.epochs=8", "train.early_stopping=0", "train.checkpoint_seconds=0"]
    whole, _ = finished(start(tmp_path / "whole", *words))
    process = start(tmp_path / "cut", *words)
    wait_for(checkpoint(tmp_path / "cut"), process)
    os.kill(wait_for(lambda: worker_of(process, 1), process), signal.SIGKILL)
    cut, said = finished(process)
    assert "was killed by SIGKILL" in said
    assert_same(cut, whole)


def test_a_failure_that_would_come_again_is_said_once(tmp_path: Path) -> None:
    said = failed(start(tmp_path, *TEXTCNN, "--workers", "2", "train.learning_rate=1e30", *STOPS), 1)
    assert said.count("the loss became") == 1
    assert "Traceback" not in said
