"""An engine's process as a worker sees it: started, listened to, given up where it hangs, and started again.

Whatever happens to the process, each order that was submitted ends: by its last output, a refusal, or `broken`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from fastserve.bundle.shares import LOST
from fastserve.errors import Overloaded, ServingError, UserError
from fastserve.generation.orders import EngineStats, Order, Output
from fastserve.serving.channel import DUMP_SIGNAL, Channel
from fastserve.serving.events import Events
from fastserve.serving.generation.wire import (
    EngineFacts,
    EngineOrder,
    Referred,
    Refusal,
    read_output,
    read_stats,
    write_order,
)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before it is started again
_STEADY_SECONDS = 30.0  # an engine that lived so long has not failed to start
_STACK_SECONDS = 0.5  # time to write the stacks before the process is killed
_RESTART_SECONDS = 2  # after which it may be back
_CROWDED_SECONDS = 1.0


class Listener(Protocol):
    """Who hears what becomes of an order. Of several orders the same one may listen."""

    def accepted(self, order: Order) -> None:
        """The engine will write it."""

    def refused(self, order: Order, refusal: Refusal) -> None:
        """It will not; nothing more comes of this order."""

    def take(self, output: Output) -> None:
        """A token."""

    def broken(self, message: str) -> None:
        """The engine is gone, and the order with it."""


class StatsListener(Protocol):
    """Who is told an engine's numbers."""

    def began(self) -> None:
        """Totals count from 0 again."""

    def told(self, stats: EngineStats) -> None: ...

    def restarted(self) -> None: ...


class EngineClient:
    """Belongs to the event loop in which it was started. hang_seconds: without a sign of life it is killed."""

    def __init__(
        self, order: EngineOrder, events: Events, watcher: StatsListener, *, hang_seconds: float, start_seconds: float
    ) -> None:
        self.order, self.events, self.watcher = order, events, watcher
        self.hang_seconds, self.start_seconds = hang_seconds, start_seconds
        self.facts: EngineFacts | None = None
        self._open: dict[str, tuple[Order, Listener]] = {}
        self._unanswered: dict[str, int] = {}
        self._ids = itertools.count(1)
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = time.monotonic()
        self._referred: asyncio.Future[Referred] | None = None
        self._closing = asyncio.Event()
        self._hung: str | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    # ---- what it is asked

    async def start(self) -> EngineFacts:
        """Start the process and wait until it is ready. UserError or ServingError where it cannot be."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[EngineFacts] = loop.create_future()
        keeping = loop.create_task(self._keep(ready))
        self._tasks = [keeping, loop.create_task(self._look_after())]
        try:
            await asyncio.wait((ready, keeping), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                keeping.result()  # raises what kept the process from being started
                raise ServingError("the engine was closed while it started")
            return await ready
        except BaseException:
            await self.close()
            raise

    @property
    def is_up(self) -> bool:
        """Whether it takes orders."""
        return self._channel is not None and self.facts is not None

    @property
    def silent_seconds(self) -> float:
        """Since its last sign of life, of which there are several a second."""
        return time.monotonic() - self._heard

    @property
    def open_orders(self) -> int:
        return len(self._open)

    def next_id(self) -> str:
        """An id for an order."""
        return str(next(self._ids))

    def submit(self, order: Order, listener: Listener) -> None:
        """Send an order. Overloaded where the engine is not there, or too much is on its way to it already."""
        channel = self._channel
        if channel is None or self.facts is None:
            raise Overloaded("the engine is starting again", _RESTART_SECONDS)
        waiting = sum(self._unanswered.values())
        if waiting and waiting + len(order.prompt) > self.order.options.max_waiting_tokens:
            raise Overloaded(f"{len(self._unanswered)} orders with {waiting} tokens are on their way", _CROWDED_SECONDS)
        self._open[order.id] = (order, listener)
        self._unanswered[order.id] = len(order.prompt)
        self._tell(channel, op="add", order=write_order(order))

    def cancel(self, id: str) -> None:
        """Nobody waits for this order any more."""
        if self._open.pop(id, None) is not None and self._channel is not None:
            self._unanswered.pop(id, None)
            self._tell(self._channel, op="cancel", id=id)

    async def refer(self, prompts: Sequence[Sequence[int]], tokens: int, texts: Sequence[str]) -> Referred:
        """See `LoadedEngine.refer`. ServingError where the engine ends meanwhile."""
        channel = self._channel
        if channel is None:
            raise ServingError("the engine is not there")
        self._referred = asyncio.get_running_loop().create_future()
        self._tell(channel, op="refer", prompts=prompts, tokens=tokens, texts=texts)
        return await self._referred

    async def drained(self) -> None:
        """Wait until everything submitted has ended."""
        while self._open:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End the process at once, and whatever is open with it."""
        self._closing.set()
        if self._process is not None:
            self._process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @staticmethod
    def _tell(channel: Channel, **message: Any) -> None:
        if not channel.writer.is_closing():
            channel.writer.write(orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS) + b"\n")

    # ---- its life

    async def _keep(self, ready: asyncio.Future[EngineFacts]) -> None:
        """Have the process run, and start it again whenever it ends; nothing looks after it then."""
        try:
            await self._live(ready)
        finally:
            for task in self._tasks[1:]:
                task.cancel()

    async def _live(self, ready: asyncio.Future[EngineFacts]) -> None:
        deaths = 0
        while not self._closing.is_set():
            started = time.monotonic()
            reason = await self._one_life(ready)
            self._break_all(reason)
            if self._closing.is_set():
                break
            if not ready.done():
                ready.set_exception(ServingError(reason))
                break
            self.watcher.restarted()
            deaths = 1 if time.monotonic() - started > _STEADY_SECONDS else deaths + 1
            self.events.error("engine ended", folder=self.order.folder, reason=reason, open=len(self._open))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (deaths - 1)))

    async def _one_life(self, ready: asyncio.Future[EngineFacts]) -> str:
        """From start to end: why it ended."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undone:
            undone.callback(ours.close)
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "fastserve.serving.generation.process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(self.order.threads),
            )
            undone.pop_all()
        ours.setblocking(False)
        channel = await Channel.open(ours)
        channel.writer.write(self.order.model_dump_json().encode("utf-8") + b"\n")
        self._heard = time.monotonic()
        self._hung = None
        failure: str | None = None
        while (message := await channel.receive()) is not None:
            self._heard = time.monotonic()
            if message["event"] == "failed":
                failure = message["message"]
                if not ready.done():
                    kind = UserError if message["exit_code"] == 2 else ServingError
                    ready.set_exception(kind(failure))
            elif message["event"] == "ready":
                self._begin(channel, EngineFacts(**message["facts"]), ready)
            else:
                self._hear(message)
        self._channel = None
        channel.close()
        process.kill()
        code = await asyncio.get_running_loop().run_in_executor(None, process.wait)
        return failure or _verdict(code, self._hung)

    def _begin(self, channel: Channel, facts: EngineFacts, ready: asyncio.Future[EngineFacts]) -> None:
        self._channel, self.facts = channel, facts
        self.watcher.began()
        if ready.done():
            self.events.info("engine ready again", folder=self.order.folder)
        else:
            ready.set_result(facts)

    def _hear(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "outputs":
                for content in message["of"]:
                    self._deal(read_output(content))
            case "accepted":
                if self._unanswered.pop(message["id"], None) is not None:
                    order, listener = self._open[message["id"]]
                    listener.accepted(order)
            case "refused":
                self._unanswered.pop(message["id"], None)
                if (found := self._open.pop(message["id"], None)) is not None:
                    found[1].refused(found[0], Refusal(**message["refusal"]))
            case "stats":
                self.watcher.told(read_stats(message["stats"]))
            case "referred":
                if self._referred is not None and not self._referred.done():
                    self._referred.set_result(Referred(**message["found"]))

    def _deal(self, output: Output) -> None:
        """A token to who asked for it. The listener says when it has all: it knows how many texts it wants."""
        if (found := self._open.get(output.id)) is not None:
            found[1].take(output)

    def done(self, id: str) -> None:
        """The listener has all texts of this order."""
        self._open.pop(id, None)

    def _break_all(self, reason: str) -> None:
        """Nobody who waits is left waiting."""
        listeners = {id(listener): listener for _, listener in self._open.values()}
        self._open.clear()
        self._unanswered.clear()
        for listener in listeners.values():
            listener.broken("the engine ended while it wrote this; it is being started again")
        if self._referred is not None and not self._referred.done():
            self._referred.set_exception(ServingError(reason))

    async def _look_after(self) -> None:
        """Give up a process that hangs."""
        while True:
            await asyncio.sleep(min(0.5, self.hang_seconds / 4))
            limit = self.hang_seconds if self.is_up else self.start_seconds
            if self._process is None or self.silent_seconds <= limit or self._hung is not None:
                continue
            self._hung = f"it has said nothing for {self.silent_seconds:.1f} s"
            self.events.error("engine hangs", folder=self.order.folder, reason=self._hung)
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(DUMP_SIGNAL)
                await asyncio.sleep(_STACK_SECONDS)
                self._process.kill()


def _environment(threads: int) -> dict[str, str]:
    """Computing threads that spin between the many short layers of a step: asleep, they gain nothing from a second
    core. While there is no work they rest all the same."""
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return {**others, "OMP_NUM_THREADS": str(threads)}


def _verdict(code: int, hung: str | None) -> str:
    """How it ended, in words."""
    if hung is not None:
        return f"the engine was killed: {hung} (its stacks are in the log)"
    if code < 0:
        return f"the engine was ended by {signal.Signals(-code).name}"
    if code == LOST:
        return "the engine ended with one of the processes that share its network"
    return f"the engine ended with exit code {code}"
