"""Two workers learn from texts without labels: each hides places of its own, and both are judged on the same."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from commands import assert_same, checkpoint, finished, start, wait_for

from fastserve.models import NetworkShape
from fastserve.models.masked import build_masked
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.masked import Masked
from fastserve.training.masked.prepare import load
from fastserve.training.masked.setup import batches

WORDS = [f"w{number}" for number in range(12)]
OPTIONS = {"dim": 16, "layers": 1, "heads": 2, "feedforward": 32}


def write_texts(path: Path) -> Path:
    """Numbers that follow each other: what stands at a place is told by what stands beside it."""
    draw = random.Random(0)
    lines = []
    for _ in range(200):
        first = draw.randrange(len(WORDS))
        words = [WORDS[(first + step) % len(WORDS)] for step in range(draw.randint(3, 20))]
        lines.append(json.dumps({"text": " ".join(words)}))
    path.write_text("\n".join(lines), "utf-8")
    return path


def command(folder: Path, workers: int) -> list[str]:
    options = [f"model.options.{name}={value}" for name, value in OPTIONS.items()]
    data = ["--task", "masked", "--data", str(write_texts(folder / "texts.jsonl")), "--workers", str(workers)]
    train = ["train.epochs=8", "train.batch=4", "train.threads=1", "data.duplicates=keep", "text.segment=whitespace"]
    return ["train", *data, *options, *train, "train.checkpoint_seconds=0"]


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_goes_on_to_the_same_weights(workers: int, tmp_path: Path) -> None:
    words = command(tmp_path, workers)
    undisturbed, _ = finished(start(tmp_path / "whole", *words))
    process = start(tmp_path / "cut", *words)
    wait_for(checkpoint(tmp_path / "cut"), process)
    process.kill()
    process.communicate()
    found, said = finished(start(tmp_path / "cut", *words))
    assert "resumed at step" in said
    assert_same(found, undisturbed)


def test_two_workers_are_judged_as_one_would_be(tmp_path: Path) -> None:
    options = [f"model.options.{name}={value}" for name, value in OPTIONS.items()]
    words = ["--task", "masked", "--data", str(write_texts(tmp_path / "texts.jsonl")), "--workers", "2", *options]
    train = [
        "train.epochs=30",
        "train.batch=4",
        "train.learning_rate=1e-2",
        "train.precision=fp32",
        "data.duplicates=keep",
    ]
    weights, said = finished(start(tmp_path, "train", *words, *train, "text.segment=whitespace"))
    assert said.count("epoch 1,") == 1, "one worker speaks for all"
    (run,) = (tmp_path / "runs").glob("*-1")
    reported = json.loads((run / "bundle" / "report.json").read_text("utf-8"))["metrics"]
    prepared = load(run / "data")
    size = prepared.pipeline.vocabulary_size("tokens")
    network = build_masked("transformer", OPTIONS, NetworkShape({"tokens": size}, size)).eval()
    network.load_state_dict(weights)
    task, scores = Masked(size), []
    with torch.inference_mode():
        for rows in batches(prepared.validation):
            tokens = prepared.validation.batch(rows).inputs["tokens"]
            scores.append(task.score(network, {"tokens": RaggedTensor.from_ragged(tokens)}))
    figures = task.quick_metrics(torch.cat(scores).numpy(), prepared.validation.targets)
    assert figures["loss"] == pytest.approx(reported["loss"]["value"], rel=1e-4)
    assert figures["accuracy"] == pytest.approx(reported["accuracy"]["value"], rel=1e-6)
    assert figures["perplexity"] < len(WORDS) / 2, "it has learned from its neighbors"
