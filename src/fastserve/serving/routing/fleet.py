"""Several servers of the same models on this machine, each with its own processes, behind one address."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress

from fastserve import device, log
from fastserve.errors import ConfigError
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate, Key
from fastserve.serving.listener import address, bind
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions
from fastserve.serving.routing.member import MemberOrder, MemberProcess
from fastserve.serving.routing.replica import Replica
from fastserve.serving.routing.route import run
from fastserve.serving.routing.router import Router

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a server is started again."""
_GRACE_SECONDS = 10.0
"""Beyond the drain, before a server is killed."""
_LOOPBACK = "127.0.0.1"


class Member:
    """One server. Its socket is kept here, so that it has the same address when it is started again."""

    def __init__(self, models: Sequence[Named], options: ServeOptions, source: str, keys: Sequence[Key]) -> None:
        self._listening = bind(_LOOPBACK, 0)
        self.replica = Replica(address(self._listening))
        self._order = MemberOrder(
            models=tuple(models), options=options, source=source, keys=tuple(keys), listening=self._listening.fileno()
        )
        self._process: MemberProcess | None = None

    async def run(self) -> int:
        """Start it and wait for its end; the exit code, negative for a signal."""
        with MemberProcess(self._order) as self._process:
            return await asyncio.get_running_loop().run_in_executor(None, self._process.wait)

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.signal(number)

    def close(self) -> None:
        self._listening.close()


class Fleet:
    """Keeps its members alive. A member that cannot start at all ends the whole, with its exit code."""

    def __init__(self, members: Sequence[Member], drain_seconds: float, events: Events) -> None:
        self.members, self.drain_seconds, self.events = tuple(members), drain_seconds, events
        self.code = 0
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, stop: asyncio.Event) -> None:
        self._tasks = [asyncio.get_running_loop().create_task(self._keep(member, stop)) for member in self.members]

    async def _keep(self, member: Member, stop: asyncio.Event) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            code = await member.run()
            if self._stopping.is_set():
                return
            if not member.replica.was_ready:
                self.code = code if code > 0 else 1
                stop.set()
                return
            self.events.warning("server ended", server=member.replica.name, code=code, again_seconds=pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def finish(self) -> None:
        """End all members, who finish what they have."""
        self._stopping.set()
        for member in self.members:
            member.signal(signal.SIGTERM)
        _, left = await asyncio.wait(self._tasks, timeout=self.drain_seconds + _GRACE_SECONDS)
        if left:
            for member in self.members:
                member.signal(signal.SIGKILL)
            await asyncio.wait(left)


def serve_replicas(
    models: Sequence[Named], options: ServeOptions, source: str, keys: Sequence[Key], place: str | None
) -> int:
    """`options.replicas` servers behind `options.port`, until a signal; the exit code. place: there is none to name."""
    if place is not None:
        raise ConfigError(
            f"--on local:{place}: local takes no address; `fastserve route` stands before servers of several "
            "machines, and --on ray starts them there"
        )
    threads = options.engine_threads
    if threads == "auto":
        threads = max(device.cores() // (options.replicas * options.workers), 1)
    own = options.model_copy(update={"engine_threads": threads, "host": _LOOPBACK})
    listening = bind(options.host, options.port)
    members = [Member(models, own, source, keys) for _ in range(options.replicas)]
    try:
        names = ", ".join(model.name for model in models)
        log.say(f"loading {names} {options.replicas} times; {address(listening)} routes to them (Ctrl+C ends it)")
        events = Events(level=options.log_level)
        gate = Gate(keys, rate=options.requests_per_second, burst=options.burst)
        router = Router([member.replica for member in members], gate, events)
        return asyncio.run(run(router, listening, options, Fleet(members, options.drain_seconds, events)))
    finally:
        listening.close()
        for member in members:
            member.close()
