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
from pathlib import Path
from types import TracebackType

FRAMES = 25
"""Of the main thread's stack, the innermost ones."""
START, FINISH = "start", "report and bundle"
PATIENT = frozenset({START, FINISH})
"""Work that may last long without a step, and that nobody need be told of."""
EXCHANGE = "exchange "
"""What an activity's name begins with in which the workers wait for each other."""


class Pulse:
    """Set by the training loop and the exchanges.

    step: optimizer steps made. doing: an activity. turns: how often either changed, so that one sees a worker move.
    """

    __slots__ = ("doing", "step", "turns")

    def __init__(self) -> None:
        self.step, self.doing, self.turns = 0, START, 0

    def stepped(self, step: int) -> None:
        """So many steps are made; the next batch is read."""
        self.step, self.doing = step, "data"
        self.turns += 1

    def during(self, name: str) -> During:
        return During(self, name)


class During:
    """While entered, the worker does `name`. What failed stays what the worker is said to do."""

    __slots__ = ("before", "name", "pulse")

    def __init__(self, pulse: Pulse, name: str) -> None:
        self.pulse, self.name = pulse, name

    def __enter__(self) -> None:
        self.before, self.pulse.doing = self.pulse.doing, self.name
        self.pulse.turns += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.pulse.doing = self.before
            self.pulse.turns += 1


def heartbeat_file(folder: Path, rank: int) -> Path:
    return folder / f"heartbeat-{rank}.json"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a worker writes the stacks of all its threads on SIGUSR1."""
    return folder / f"stack-{rank}.txt"


class Heartbeat:
    """Writes down a worker's pulse and the Python stack of its main thread while entered."""

    def __init__(self, pulse: Pulse, folder: Path, rank: int, *, every_seconds: float = 1.0) -> None:
        self.pulse, self.folder, self.rank = pulse, folder, rank
        self.every_seconds = every_seconds
        self.beats = 0

    def __enter__(self) -> Heartbeat:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.main = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        self.write()
        while not self._ended.wait(self.every_seconds):
            self.write()

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
