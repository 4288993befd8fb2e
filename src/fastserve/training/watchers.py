"""Who watches a run: the event file, TensorBoard, the progress line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastserve.files import write_bytes
from fastserve.log import Progress, say, warn
from fastserve.training.events import Evaluated, Event, Finished, RateReduced, Resumed, Skipped, Stepped, WentBack
from fastserve.training.settings import Settings

Watcher = Callable[[Event], None]

EVENTS = "events.jsonl"
FLUSH_SECONDS = 30
"""After which TensorBoard sees what was written."""
MOST_STEP_LINES = 500
"""How many optimizer steps of a run are written down; a longer run writes every n-th."""


def watch(events: Iterable[Event], watchers: Iterable[Watcher]) -> Finished:
    """Let every watcher see every event; the last one is returned."""
    watchers = list(watchers)
    last = None
    for event in events:
        for watcher in watchers:
            watcher(event)
        last = event
    if not isinstance(last, Finished):
        raise RuntimeError("a run must end with Finished")
    return last


def thinned(watcher: Watcher, settings: Settings) -> Watcher:
    """`watcher` without most of the optimizer steps of a long run."""
    every = max(1, settings.total_steps // MOST_STEP_LINES)

    def see(event: Event) -> None:
        if not isinstance(event, Stepped) or event.step % every == 0:
            watcher(event)

    return see


class EventFile:
    """`events.jsonl`, one event a line. On a resume the lines that will be repeated are dropped first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def __call__(self, event: Event) -> None:
        if isinstance(event, Resumed | WentBack):
            self._forget_after(event.step)
        self.file.write(json.dumps({"time": round(time.time(), 3), **event.to_json()}) + "\n")
        if not isinstance(event, Stepped):
            self.file.flush()

    def _forget_after(self, step: int) -> None:
        self.file.close()
        kept = [line for line in read_events(self.path) if line["step"] <= step]
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        self.file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a run; a line that a killed process left unfinished is passed over."""
    events = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


class TensorBoard:
    """TensorBoard files beside the events: loss, learning rate, validation figures.

    Written where they come up: the thread of the usual writer was waited for without end once memory had run out.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        path = folder / "tensorboard"
        path.mkdir(exist_ok=True)
        self.writer = EventsWriter(str(path / "events"))
        self._flushed = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            if math.isfinite(event.loss):
                self._add("train/loss", event.loss, event.step)
            self._add("train/learning_rate", event.learning_rate, event.step)
        elif isinstance(event, Evaluated):
            for name, value in event.metrics.items():
                self._add(f"validation/{name}", value, event.step)

    def _add(self, name: str, value: float, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event as Entry
        from tensorboardX.summary import scalar

        self.writer.write_event(Entry(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self.writer.close()


class ProgressLine:
    """Rate, time left and loss for the person who waits, and a line for each evaluation."""

    def __init__(self, progress: Progress, settings: Settings) -> None:
        self.progress, self.settings = progress, settings
        self._loss = 0.0
        self._items, self._start = 0, time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, Resumed):
            self.progress.done = event.step * (self.progress.total or 0) / max(self.settings.total_steps, 1)
            say(f"resumed at step {event.step} of {self.settings.total_steps}")
        elif isinstance(event, WentBack):
            self.progress.done = event.step * (self.progress.total or 0) / max(self.settings.total_steps, 1)
            done = "that batch is left out" if event.skipped else f"the learning rate is times {event.factor:g}"
            warn(f"{event.reason}: the run goes back to step {event.step}, and from there on {done}")
        elif isinstance(event, Skipped):
            self.progress.advance(event.rows)
        elif isinstance(event, Evaluated):
            figures = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
            best = " (best so far)" if event.best and self.settings.recipe.keep == "best" else ""
            say(f"epoch {event.epoch + 1}, step {event.step}: validation {figures}{best}")
        elif isinstance(event, RateReduced):
            say(f"step {event.step}: no more gain on validation, learning rate times {event.factor:g} from here on")
        elif isinstance(event, Finished):
            say(f"training ended at step {event.step}: {event.reason}; the weights of step {event.best_step} are kept")

    def _step(self, event: Stepped) -> None:
        self._loss = event.loss if self._loss == 0.0 else 0.95 * self._loss + 0.05 * event.loss
        self._items += event.items
        rate = self._items / max(time.monotonic() - self._start, 1e-9)
        self.progress.advance(event.rows, f"loss {self._loss:.4f}, {rate:,.0f} tokens/s")
