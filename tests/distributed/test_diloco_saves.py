"""What diloco is for: nearly ddp's loss with a fiftieth of its bytes. `benchmarks/diloco.py` says it of real texts."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ended, start

INNER_STEPS = 50
SMALL = [f"model.options.{each}" for each in ("dim=64", "heads=2", "layers=1", "feedforward=128")]
TRAINING = ["train.early_stopping=0", "train.threads=1", "train.epochs=8", f"train.evaluate_every={INNER_STEPS}"]
WRONG_LABELS = 0.1
"""So that no network, however long it trains, gets below a loss of 0.33."""


@dataclass(frozen=True)
class Found:
    """lowest: loss on the validation rows; first: before there was anything to learn from; sent: bytes of a worker."""

    lowest: float
    first: float
    sent: int


def write_texts(path: Path) -> Path:
    """3,000 texts of six words of which two kinds of text have other ones, in part."""
    draw = random.Random(3)
    words = {"left": range(120), "right": range(80, 200)}
    lines = ["label\ttext"]
    for _ in range(3_000):
        kind = draw.choice(list(words))
        text = " ".join(f"word{draw.choice(words[kind])}" for _ in range(6))
        said = draw.choice(list(words)) if draw.random() < 2 * WRONG_LABELS else kind
        lines.append(f"{said}\t{text}")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def trained(home: Path, data: Path, strategy: str) -> Found:
    words = ["train", "--data", str(data), "--network", "transformer", "--workers", "2", *SMALL, *TRAINING]
    ended(start(home, *words, f"distributed.strategy={strategy}"), 0)
    (run,) = home.glob("runs/*")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    losses = [event["metrics"]["loss"] for event in events if event["event"] == "evaluation"]
    counted = json.loads((run / "workers/rank-0.jsonl").read_text("utf-8").splitlines()[-1])
    return Found(min(losses), next(event["loss"] for event in events if event["event"] == "step"), counted["sent"])


@pytest.mark.heavy
def test_nearly_the_loss_of_ddp_with_a_fiftieth_of_its_bytes(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.tsv")
    ddp, diloco = (trained(tmp_path / strategy, data, strategy) for strategy in ("ddp", "diloco"))
    assert ddp.sent > 50 * diloco.sent
    assert diloco.lowest < 1.05 * ddp.lowest
    assert max(ddp.lowest, diloco.lowest) < 0.75 * ddp.first, "both have learned"
