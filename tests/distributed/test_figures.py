"""What a worker is said to have done with its time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from fastserve.distributed.pulse import EXCHANGE, Pulse
from fastserve.distributed.world import World
from fastserve.training.events import Finished, Stepped
from fastserve.training.figures import WorkerFigures, compare
from fastserve.training.loop import padding
from fastserve.types import Batch, Ragged


def test_every_moment_belongs_to_the_innermost_activity() -> None:
    pulse = Pulse()
    start = time.perf_counter()
    with pulse.during("update"):
        time.sleep(0.02)
        with pulse.during(EXCHANGE + "rows"):
            time.sleep(0.03)
    pulse.turn_to("data")
    whole = time.perf_counter() - start
    assert pulse.seconds["update"] == pytest.approx(0.02, abs=0.015)
    assert pulse.seconds[EXCHANGE + "rows"] == pytest.approx(0.03, abs=0.015)
    assert sum(pulse.seconds.values()) == pytest.approx(whole, abs=0.01)


def test_padding_is_what_no_text_fills() -> None:
    tokens = Ragged.from_rows([np.ones(4, np.int32), np.ones(2, np.int32)])
    assert padding(Batch(np.arange(2), {"tokens": tokens}, np.zeros(2))) == 0.25
    assert padding(Batch(np.arange(2), {"ngrams": tokens}, np.zeros(2))) == 0.0


def test_a_worker_writes_its_sums(tmp_path: Path) -> None:
    world = World()
    figures = WorkerFigures(world, tmp_path)
    world.pulse.seconds.update({"forward": 3.0, "backward": 5.0, EXCHANGE + "backward": 2.0, EXCHANGE + "gather": 7.0})  # type: ignore[dict-item]
    figures(Stepped(1, 0, 0.5, 0.1, 8, 100, 0.25))
    figures(Stepped(2, 0, 0.5, 0.1, 8, 100, 0.75))
    figures(Finished(2, 0, "all epochs done", 2))
    (line,) = (tmp_path / "rank-0.jsonl").read_text("utf-8").splitlines()
    found = json.loads(line)
    assert (found["steps"], found["computing"], found["exchange_share"], found["padding_share"]) == (2, 8.0, 0.2, 0.5)
    assert compare(world, figures).startswith("1 workers: 20% of a step in exchanges, 50% padding")


def test_who_is_slower_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(size=3)
    others = [[1.0, 0.5, 0.0, 10.0], [1.0, 0.5, 0.0, 10.0], [1.5, 0.1, 0.0, 10.0]]
    monkeypatch.setattr(World, "gather", lambda self, mine: np.array(others))
    assert compare(world, WorkerFigures(world, tmp_path)).endswith("; the others waited for worker 2 (1.50 times)")
