"""What each worker of a run did with its time, and which of them the others wait for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.distributed.pulse import EXCHANGE
from fastserve.distributed.world import World
from fastserve.training.events import Evaluated, Event, Finished, Stepped

EVERY_SECONDS = 10.0
COMPUTING = ("forward", "backward", "update", "data")
SELDOM = frozenset(EXCHANGE + name for name in ("meeting", "end", "barrier", "gather", "checkpoint", "evaluation"))
"""Exchanges that are no part of a step."""
SLOW = 1.15
"""A worker that computes for so many times the usual is told of."""


class WorkerFigures:
    """A watcher: a line in `workers/rank-N.jsonl` every few seconds, with sums since the process began.

    apart: whether exchanges can be told apart from computing (`Strategy.tells_apart`).
    """

    def __init__(self, world: World, folder: Path, *, apart: bool = True) -> None:
        self.world, self.apart = world, apart
        self.path = folder / f"rank-{world.rank}.jsonl"
        self.steps, self.rows, self.padding = 0, 0, 0.0
        self._start = self._written = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.steps += 1
            self.rows += event.rows
            self.padding += event.padding
        due = time.monotonic() - self._written >= EVERY_SECONDS
        if due or isinstance(event, Evaluated | Finished):
            self._write(event)

    def _write(self, event: Event) -> None:
        self._written = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "step": event.step, **self.content()}) + "\n")

    def content(self) -> dict[str, Any]:
        """Sums since the start of this process."""
        seconds = self.world.pulse.seconds
        return {
            "steps": self.steps,
            "texts_per_second": round(self.rows / max(time.monotonic() - self._start, 1e-9), 1),
            "seconds": {name: round(value, 3) for name, value in sorted(seconds.items())},
            "computing": round(self.computing, 3),
            "exchange_share": round(self.exchange_share, 4) if self.apart else None,
            "padding_share": round(self.padding_share, 4),
            "sent": self.world.traffic.total,
            "sent_for": dict(self.world.traffic.bytes),
        }

    @property
    def computing(self) -> float:
        """Seconds in which this worker did its own part of steps."""
        return sum(self.world.pulse.seconds[name] for name in COMPUTING)

    @property
    def exchange_share(self) -> float:
        """Of the time of steps, what went into exchanges, or into waiting in one for others."""
        seconds = self.world.pulse.seconds
        waited = sum(seconds[name] for name in seconds if name.startswith(EXCHANGE) and name not in SELDOM)
        return waited / max(waited + self.computing, 1e-9)

    @property
    def padding_share(self) -> float:
        return self.padding / max(self.steps, 1)


def compare(world: World, figures: WorkerFigures) -> str:
    """One line about all workers, for the leader to say. All of them must call."""
    mine = [figures.computing, figures.exchange_share, figures.padding_share, figures.world.traffic.of_steps]
    computing, exchange, padding, sent = world.gather(np.array([mine])).T
    steps = max(figures.steps, 1)
    usual = float(np.median(computing))
    slow = [
        f"worker {rank} ({seconds / usual:.2f} times)"
        for rank, seconds in enumerate(computing)
        if figures.apart and usual and seconds > SLOW * usual
    ]
    share = f"{exchange.mean():.0%} of a step in exchanges, " if figures.apart else ""
    line = (
        f"{world.size} workers: {share}{padding.mean():.0%} padding, "
        f"{sent.mean() / steps / 1e6:,.3f} MB sent a step by each"
    )
    return f"{line}; the others waited for {', '.join(slow)}" if slow else line
