"""The hang doctor: when the workers of a run stand still, which of them holds the others up, and where it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.distributed.pulse import EXCHANGE, PATIENT, heartbeat_file, stack_file

LOOK_SECONDS = 1.0
START_SECONDS = 90.0
SILENT_SECONDS = 5.0
"""A worker whose heartbeat is older does not run, or is not to be reached."""
DUMP_SECONDS = 2.0
"""How long a worker has to write its stacks on SIGUSR1."""


@dataclass(slots=True)
class Sight:
    """What is known of a worker. Times are those of this machine's monotonic clock, since clocks of machines differ.

    pid: of a worker of this machine, else None. heard: when its last heartbeat came. moved: when it last did
    something else. content: the heartbeat, empty before the first.
    """

    rank: int
    pid: int | None
    heard: float
    moved: float
    content: dict[str, Any]

    @property
    def doing(self) -> str:
        return str(self.content.get("doing", "nothing yet"))

    @property
    def step(self) -> int:
        return int(self.content.get("step", 0))

    @property
    def waits(self) -> bool:
        return self.doing.startswith(EXCHANGE)

    @property
    def place(self) -> str:
        where = f" on {self.content['host']}" if self.pid is None and self.content else ""
        return f"worker {self.rank}{where}"


class Doctor:
    """Looks at the heartbeats in `folder`.

    stall_seconds: without any worker doing something else until it speaks. start_seconds: the same while a worker has
    not yet been heard of, since a busy machine may be long about starting it.
    """

    def __init__(self, folder: Path, stall_seconds: float, start_seconds: float = START_SECONDS) -> None:
        self.folder, self.stall_seconds = folder, stall_seconds
        self.start_seconds = max(stall_seconds, start_seconds)
        self.sights: list[Sight] = []

    def begin(self, size: int, pids: Mapping[int, int]) -> None:
        """`size` workers are started. pids: those of this machine, by rank. What lies in the folder is of the past."""
        now = time.monotonic()
        self.sights = [Sight(rank, pids.get(rank), now, now, {}) for rank in range(size)]
        self._past = {rank: self._read(rank) for rank in range(size)}
        self._looked, self._told = now, False

    def look(self) -> str | None:
        """A diagnosis, once a stall; None while all is well. Costs nothing more than once a second."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        for sight in self.sights:
            self._refresh(sight, now)
        still = now - max(sight.moved for sight in self.sights)
        limit = self.stall_seconds if all(sight.content for sight in self.sights) else self.start_seconds
        if still < limit or any(self._is_patient(sight, now) for sight in self.sights):
            self._told = self._told and still >= limit
            return None
        if self._told:
            return None
        self._told = True
        return self.diagnosis(now)

    def _is_patient(self, sight: Sight, now: float) -> bool:
        """Whether a worker is at work that may last. One that cannot move may have gone on since it said so."""
        return sight.doing in PATIENT and not self._state(sight, now)

    def _refresh(self, sight: Sight, now: float) -> None:
        content = self._read(sight.rank)
        if not content or content == self._past[sight.rank]:
            return
        if content.get("beats") != sight.content.get("beats"):
            sight.heard = now
        if content.get("turns") != sight.content.get("turns"):
            sight.moved = now
        sight.content = content

    def _read(self, rank: int) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(heartbeat_file(self.folder, rank).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content

    # What is the matter

    def diagnosis(self, now: float) -> str:
        """Who holds the others up, why, where the others wait, and the stack of the one."""
        still = now - max(sight.moved for sight in self.sights)
        states = {sight.rank: self._state(sight, now) for sight in self.sights}
        held = holding(self.sights, states)
        told = f"no worker has moved for {still:.0f} s: "
        if not held:
            one = self.sights[0]
            why = "; look at the network between the machines" if one.waits else ""
            told += f"all of them are in: {one.doing}, after step {one.step}{why}. Worker {one.rank}:"
            return f"{told}\n{self._stack(one, '', now)}".rstrip()
        waiting = Counter((s.step, s.doing) for s in self.sights if s not in held and s.waits)
        first = held[0]
        others = f" (and {', '.join(s.place for s in held[1:])})" if held[1:] else ""
        told += f"{first.place}{others} holds the others up. "
        told += f"It {states[first.rank] or 'runs'}, after step {first.step}, in: {first.doing}"
        if waiting:
            (step, doing), count = waiting.most_common(1)[0]
            told += f"; {count} wait in the {doing} after step {step}"
        return f"{told}\n{self._stack(first, states[first.rank], now)}".rstrip()

    def _state(self, sight: Sight, now: float) -> str:
        """Why a worker cannot move; empty where it runs."""
        state = process_state(sight.pid) if sight.pid is not None else ""
        if state is None or state in ("Z", "X"):
            return "is gone"
        if state in ("T", "t"):
            return f"is stopped (kill -CONT {sight.pid} lets it go on)"
        if state == "D":
            return "waits for the disk"
        if now - sight.heard > SILENT_SECONDS:
            return f"has given no sign of life for {now - sight.heard:.0f} s"
        return ""

    def _stack(self, sight: Sight, state: str, now: float) -> str:
        if sight.pid is not None and state.startswith("has given no sign"):
            text = self._live_stack(sight)
            if text:
                return f"its threads now:\n{text}"
        if not sight.content.get("stack"):
            return ""
        return f"its Python stack {now - sight.heard:.0f} s ago:\n{sight.content['stack']}"

    def _live_stack(self, sight: Sight) -> str:
        """What the worker writes on SIGUSR1, also while it is held in code that is not Python."""
        path = stack_file(self.folder, sight.rank)
        if not path.is_file() or sight.pid is None:  # it has not yet said what to do on the signal, and would end by it
            return ""
        before = path.stat().st_size
        with contextlib.suppress(ProcessLookupError):
            os.kill(sight.pid, signal.SIGUSR1)
        deadline = time.monotonic() + DUMP_SECONDS
        while time.monotonic() < deadline and path.stat().st_size == before:
            time.sleep(0.05)
        time.sleep(0.05)
        return path.read_text("utf-8", errors="replace")[before:]


def holding(sights: list[Sight], states: Mapping[int, str]) -> list[Sight]:
    """Those for whom the others wait: who cannot move, else who is not in the exchange, else who is behind.

    Empty where all do the same.
    """
    stuck = [sight for sight in sights if states[sight.rank]]
    if stuck:
        return sorted(stuck, key=lambda sight: "no sign" in states[sight.rank])
    working = [sight for sight in sights if not sight.waits]
    if working and len({(sight.step, sight.doing) for sight in sights}) > 1:
        return sorted(working, key=lambda sight: sight.step)
    (usual, _) = Counter((sight.step, sight.doing) for sight in sights).most_common(1)[0]
    return sorted((s for s in sights if (s.step, s.doing) != usual), key=lambda sight: sight.step)


def process_state(pid: int) -> str | None:
    """The letter of /proc/PID/stat (R, S, D, T, Z); None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[0]
