"""What a worker does right now, kept in memory for nothing and written down once a second by a thread."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType

from fastserve.distributed.every import Every

FRAMES = 25
"""Of the main thread's stack, the innermost ones."""
START, FINISH = "start", "report and bundle"
PATIENT = frozenset({START, FINISH})
"""Work that may last long without a step, and that nobody need be told of."""
EXCHANGE = "exchange "
"""What an activity's name begins with in which the workers wait for each other."""
BACKWARD = EXCHANGE + "backward"


class Pulse:
    """Set by the training loop and the exchanges.

    step: optimizer steps made. doing: an activity. turns: how often either changed, so that one sees a worker move.
    seconds: how long each activity lasted so far; every moment belongs to the innermost one. entered: when each began,
    the last time.
    """

    __slots__ = ("_since", "doing", "entered", "seconds", "step", "turns")

    def __init__(self) -> None:
        self.step, self.doing, self.turns = 0, START, 0
        self.seconds: Counter[str] = Counter()
        self._since = time.perf_counter()
        self.entered = {START: self._since}

    def turn_to(self, name: str) -> None:
        """From now on the worker does `name`."""
        now = time.perf_counter()
        self.seconds[self.doing] += now - self._since  # type: ignore[assignment]  # a Counter holds seconds as well
        self._since, self.doing = now, name
        self.entered[name] = now
        self.turns += 1

    def lasted(self, name: str) -> float:
        """Seconds of `name` up to now."""
        return self.seconds[name] + (time.perf_counter() - self._since if self.doing == name else 0.0)

    def reckon(self, name: str, other: str, seconds: float) -> None:
        """So much of the time of `name` was that of `other`, as it turned out."""
        self.seconds[name] -= seconds  # type: ignore[assignment]
        self.seconds[other] += seconds  # type: ignore[assignment]

    def stepped(self, step: int) -> None:
        """So many steps are made; the next batch is read."""
        self.step = step
        self.turn_to("data")

    def during(self, name: str) -> During:
        return During(self, name)


class During:
    """While entered, the worker does `name`. What failed stays what the worker is said to do."""

    __slots__ = ("before", "name", "pulse")

    def __init__(self, pulse: Pulse, name: str) -> None:
        self.pulse, self.name = pulse, name

    def __enter__(self) -> None:
        self.before = self.pulse.doing
        self.pulse.turn_to(self.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.pulse.turn_to(self.before)


def heartbeat_file(folder: Path, rank: int) -> Path:
    return folder / f"heartbeat-{rank}.json"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a worker writes the stacks of all its threads on SIGUSR1."""
    return folder / f"stack-{rank}.txt"


class Heartbeat:
    """Writes down a worker's pulse and the Python stack of its main thread while entered."""

    def __init__(self, pulse: Pulse, folder: Path, rank: int, *, every_seconds: float = 1.0) -> None:
        self.pulse, self.folder, self.rank = pulse, folder, rank
        self.beats = 0
        self._beating = Every(every_seconds, self.write, "heartbeat")

    def __enter__(self) -> Heartbeat:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.main = threading.get_ident()
        self._beating.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beating.__exit__(kind, error, trace)

    def write(self) -> None:
        """Replace the file. A full disk is no reason to stop a run."""
        self.beats += 1
        path = heartbeat_file(self.folder, self.rank)
        temporary = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(self.content()), "utf-8")
            os.replace(temporary, path)

    def content(self) -> dict[str, object]:
        frame = sys._current_frames().get(self.main)
        return {
            "rank": self.rank,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "step": self.pulse.step,
            "doing": self.pulse.doing,
            "turns": self.pulse.turns,
            "beats": self.beats,
            "time": time.time(),
            "processor_seconds": time.process_time(),
            "stack": "".join(traceback.format_stack(frame)[-FRAMES:]) if frame else "",
        }
