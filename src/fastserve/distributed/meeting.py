"""Where the machines of a run meet, and where they meet next when that is lost.

Storage that all machines share holds what they agree on: which of the named places is in use (`meeting.json`, with a
number that grows whenever they move), and of each machine a file that it renews, which says whether it reaches that
place. A machine on which one of the places lies takes the meeting over once more than half of the living ones do not
reach it. So one machine that is cut off cannot draw the others away, and one that comes back finds where they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fastserve import files, log
from fastserve.distributed import strangers
from fastserve.distributed.every import Every
from fastserve.distributed.network import Endpoint, interface_towards, resolve
from fastserve.errors import ConfigError, StorageError, TrainingError

BEAT_SECONDS = 1.0
ALIVE_SECONDS = 8.0
"""A machine that has not renewed its file for so long is dead."""
REACH_SECONDS = 2.0
"""How long a place may take to answer."""
LOST_SECONDS = 8.0
"""A place that has not answered for so long is lost to this machine."""
FENCE_SECONDS = 3.0
"""After a move, until workers start at the new place: those who still work at the old one see it meanwhile."""
MOVED_SECONDS = 1.0
"""How often a machine that works looks whether the others have moved."""
FILE = "meeting.json"
NOWHERE = -1
"""For the number of a place: this machine reaches none."""


@dataclass(slots=True)
class Place:
    """Where the machines meet. number: how often they have moved. hosts: whether it is this machine that keeps it."""

    endpoint: Endpoint
    number: int
    hosts: bool
    meeting: Meeting
    looked: float = 0.0
    stranger: str | None = None
    """A machine that came and does not share the storage."""

    def moved(self) -> bool:
        """Whether the others have agreed on another place; looks at most once a second."""
        if time.monotonic() - self.looked < MOVED_SECONDS:
            return False
        self.looked = time.monotonic()
        current = self.meeting.current()
        return current is not None and bool(current["number"] != self.number)


class Meeting:
    """This machine among those of the run. folder: on storage that all of them share. To be entered."""

    def __init__(self, folder: Path, endpoints: Sequence[Endpoint]) -> None:
        self.folder, self.endpoints = folder, list(endpoints)
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.reached = NOWHERE
        self._at: Endpoint | None = None
        self._addresses: list[str] = []
        """Of the host of `_at`, whose name may be unknown once the host is gone."""
        self._beats = 0
        self._seen: dict[str, tuple[int, float]] = {}
        self._presence = Every(BEAT_SECONDS, self._beat, "presence")

    def __enter__(self) -> Meeting:
        self._machines.mkdir(parents=True, exist_ok=True)
        self._answered = time.monotonic()
        self._presence.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._presence.__exit__(kind, error, trace)
        self._own.unlink(missing_ok=True)

    def place(self, seconds: float) -> Place:
        """Where to meet now: waits until there is a place that answers, or makes one. TrainingError after `seconds`."""
        self._check_known()
        deadline = time.monotonic() + seconds
        began = time.monotonic()
        told = False
        while time.monotonic() < deadline:
            current = self.current()
            if current is not None and self._reaches(current):
                self._at = Endpoint.parse(current["endpoint"])
                self._addresses = resolve(self._at)
                return Place(self._at, current["number"], False, self)
            taken = self._take_over(current, time.monotonic() - began)
            if taken is not None:
                return taken
            if current is None and time.monotonic() - began > ALIVE_SECONDS:
                self._check_shared()
            if not told and time.monotonic() - began > ALIVE_SECONDS:
                told = True
                log.say(f"waiting for the machines to meet at one of {', '.join(map(str, self.endpoints))}")
            time.sleep(BEAT_SECONDS / 2)
        raise TrainingError(
            f"none of {', '.join(map(str, self.endpoints))} answered within {seconds:.0f} s: start the same command on "
            "the machine of one of them, and see that its port is open to the others"
        )

    def _check_known(self) -> None:
        """ConfigError where the names of all places are unknown; that of a lost one may be, while others are there."""
        for endpoint in self.endpoints[:-1]:
            with contextlib.suppress(ConfigError):
                resolve(endpoint)
                return
        resolve(self.endpoints[-1])

    def _check_shared(self) -> None:
        """Nothing is written here of a meeting: then none of the places may answer."""
        for endpoint in filter(_answers, self.endpoints):
            strangers.tell(endpoint)
            raise StorageError(
                f"{endpoint} answers, but {self.folder} has nothing of a meeting there: $FASTSERVE_HOME is not shared "
                "by the machines, or another program uses that port. Set it, on every machine, to a folder on storage "
                "that all of them share"
            )

    def current(self) -> dict[str, Any] | None:
        """The place that is in use."""
        try:
            content: dict[str, Any] = json.loads((self.folder / FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return content

    def _reaches(self, current: dict[str, Any]) -> bool:
        """Whether the place answers; the other machines are told."""
        answers = _answers(Endpoint.parse(current["endpoint"]))
        self.reached = current["number"] if answers else NOWHERE
        return answers

    def _take_over(self, current: dict[str, Any] | None, waited: float) -> Place | None:
        """Keep the meeting from now on, where this machine may."""
        mine = next((endpoint for endpoint in self.endpoints if _is_here(endpoint)), None)
        if mine is None or (current is not None and (waited < ALIVE_SECONDS or not self._given_up(current["number"]))):
            return None
        if current is None and any(_answers(endpoint) for endpoint in self.endpoints if endpoint != mine):
            return None  # it is kept there already, which storage that is shared will soon say
        with files.lock(self.folder / ".meeting"):
            if self.current() != current:  # another one was faster
                return None
            number = 1 if current is None else current["number"] + 1
            files.write_json(self.folder / FILE, {"endpoint": str(mine), "number": number, "host": self.name})
        self.reached = number
        if current is not None:
            log.warn(f"the machines meet at {mine} from now on")
            time.sleep(FENCE_SECONDS)
        return Place(mine, number, True, self)

    def _given_up(self, number: int) -> bool:
        """Whether more than half of the living machines do not reach the place."""
        living = self._living()
        return 2 * sum(1 for content in living if content["reached"] == number) < len(living)

    def _living(self) -> list[dict[str, Any]]:
        """What the machines say that have renewed their files lately; this one says that it does not reach."""
        now, living = time.monotonic(), [{"reached": self.reached}]
        for path in self._machines.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(path.read_text("utf-8"))
                beats, since = self._seen.get(path.name, (-1, now))
                since = since if beats == content["beats"] else now
                self._seen[path.name] = (content["beats"], since)
                if path != self._own and now - since < ALIVE_SECONDS:
                    living.append(content)
        return living

    @property
    def _machines(self) -> Path:
        return self.folder / "machines"

    @property
    def _own(self) -> Path:
        return self._machines / f"{self.name}.json"

    def _beat(self) -> None:
        """Renew this machine's file; let go of a place that has not answered for long."""
        self._beats += 1
        if self._at is None or _answers(self._at):
            self._answered = time.monotonic()
        elif time.monotonic() - self._answered > LOST_SECONDS:
            port, self._at, self.reached = self._at.port, None, NOWHERE
            _hang_up({(address, port) for address in self._addresses})
        temporary = self._own.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({"beats": self._beats, "reached": self.reached}), "utf-8")
            os.replace(temporary, self._own)


def _answers(endpoint: Endpoint) -> bool:
    try:
        socket.create_connection((endpoint.host, endpoint.port), REACH_SECONDS).close()
    except OSError:
        return False
    return True


def _hang_up(addresses: set[tuple[str, int]]) -> None:
    """Shut this process's connections to these: whoever reads there would wait for ever, without a timeout."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(number))) as connection:
            peer = connection.getpeername()
            if (str(peer[0]).removeprefix("::ffff:"), peer[1]) in addresses:
                connection.shutdown(socket.SHUT_RDWR)


def _is_here(endpoint: Endpoint) -> bool:
    try:
        return interface_towards(endpoint).owns(endpoint)
    except ConfigError:  # nobody knows the name of a host that is gone
        return False


def forget(folder: Path) -> None:
    """Nobody is in the run: what earlier machines agreed on is void."""
    (folder / FILE).unlink(missing_ok=True)
    for path in (folder / "machines").glob("*"):
        path.unlink(missing_ok=True)
