"""Keeps the workers alive, answers in their place while none can, and ends in an orderly way.

The supervisor owns the listening socket, so a connection that arrives while a worker restarts is neither refused nor
left hanging: the supervisor answers it with 503. It loads no model and computes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from fastserve.errors import FastServeError, ServingError, UserError
from fastserve.serving.board import Board
from fastserve.serving.channel import WorkerOrder
from fastserve.serving.connection import Connections
from fastserve.serving.events import Events
from fastserve.serving.keys import Key
from fastserve.serving.listener import Listener, address
from fastserve.serving.messages import HttpLimits
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions
from fastserve.serving.process import WorkerProcess
from fastserve.serving.standin import StandIn

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds before a worker is started again
_STEADY_SECONDS = 30.0  # a worker that lived so long has not failed to start
_MOST_EARLY_DEATHS = 3  # in a row, before any readiness
_MOST_DEATHS = 10  # in a row, each within the steady time
_FAREWELL_SECONDS = 0.5  # for those who came last to send their request and hear that it is over
_KILL_GRACE_SECONDS = 2.0  # beyond the drain, before a worker is killed


class Supervisor:
    """Serves `models` on `listening` with `options.workers` processes until it is told to stop."""

    def __init__(
        self,
        models: Sequence[Named],
        options: ServeOptions,
        source: str,
        listening: socket.socket,
        keys: Sequence[Key] = (),
    ) -> None:
        self.models, self.options, self.source = tuple(models), options, source
        self.listening, self.keys = listening, tuple(keys)
        self.events = Events(level=options.log_level)
        self._workers: dict[int, WorkerProcess] = {}
        self._good_folders: dict[str, str] = {}
        self._was_ready = False
        self._stopping = False
        self._standin = StandIn()

    async def run(self) -> int:
        """The exit code; a FastServeError where the server cannot go on."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._board_file = Board.make_file()
        self._board = Board(
            [model.name for model in self.models],
            workers=self.options.workers,
            keys=len(self.keys),
            descriptor=self._board_file,
        )
        self._connections = Connections(self._standin, HttpLimits(body_seconds=5.0, idle_seconds=5.0, connections=512))
        self._listener = Listener(self.listening, self._connections)
        self._listener.open()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signal, number)
        keepers = [self._loop.create_task(self._keep(number)) for number in range(self.options.workers)]
        keepers.append(self._loop.create_task(self._look_after()))
        try:
            return await self._ended
        finally:
            await self._finish(keepers)

    # ---- workers

    async def _keep(self, number: int) -> None:
        """Have worker `number` run: start it, and start it again whenever it ends."""
        deaths = 0
        while not self._stopping:
            lived = await self._one_life(number, deaths)
            deaths = deaths + 1 if lived < _STEADY_SECONDS else 1
            await asyncio.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (deaths - 1)))

    async def _one_life(self, number: int, deaths: int) -> float:
        """Run worker `number` from start to end: the seconds it lived. deaths: how many before it died young."""
        worker = self._workers[number] = WorkerProcess(self._order(number), self._hear)
        code = await worker.run()
        lived = time.monotonic() - worker.started
        del self._workers[number]
        self._change_door()
        if not self._stopping:
            self._board.count_restart()
            self._board.clear_gauges(number)
            self.events.error("worker ended", worker=number, reason=worker.verdict(code), lived=round(lived, 3))
            error = self._hopeless(worker, code, deaths + 1 if lived < _STEADY_SECONDS else 1)
            if error is not None:
                self._fail(error)
        return lived

    def _order(self, number: int) -> WorkerOrder:
        return WorkerOrder(
            models=self.models,
            options=self.options,
            source=self.source,
            keys=self.keys,
            worker=number,
            listening=self.listening.fileno(),
            board=self._board_file,
            fallback=self._good_folders,
        )

    def _hear(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        if message["event"] in ("ready", "swapped"):
            self._good_folders = message["folders"]
        if message["event"] == "ready":
            is_first, self._was_ready = not self._was_ready, True
            self._change_door()  # first, so that nobody whom the worker answered then meets us and gets a 503
            worker.let_in()
            if is_first:  # said when the door is the worker's, so that nobody who reads it still gets a 503
                self.events.info("serving", address=address(self.listening), models=list(self._good_folders))

    def _hopeless(self, worker: WorkerProcess, code: int, deaths: int) -> FastServeError | None:
        """The error to end with, where starting again would not help."""
        reason = worker.verdict(code)
        if not self._was_ready and worker.failure is not None:
            return UserError(reason) if worker.failure_code == 2 else ServingError(reason)
        if not self._was_ready and deaths >= _MOST_EARLY_DEATHS:
            return ServingError(f"no worker became ready; {deaths} died in a row. The last: {reason}")
        if deaths >= _MOST_DEATHS:
            return ServingError(f"a worker died {deaths} times in a row, each within seconds. The last: {reason}")
        return None

    def _change_door(self) -> None:
        """Take connections ourselves exactly while no worker can."""
        if self._stopping or not any(worker.is_ready for worker in self._workers.values()):
            self._standin.reason = (
                "the server is shutting down"
                if self._stopping
                else "the server is restarting a worker"
                if self._was_ready
                else "the server is starting"
            )
            self._listener.open()
        else:
            self._listener.close()

    async def _look_after(self) -> None:
        """Give up workers that hang, and end slow connections of our own."""
        while True:
            await asyncio.sleep(min(0.5, self.options.hang_seconds / 4))
            now = time.monotonic()
            self._connections.sweep(now)
            self._listener.look()
            for worker in tuple(self._workers.values()):
                reason = worker.overdue(now)
                if reason is not None and worker.hung is None:
                    self.events.error("worker hangs", worker=worker.order.worker, reason=reason)
                    self._loop.create_task(worker.give_up(reason))

    # ---- the end

    def _signal(self, number: int) -> None:
        """The first asks for an orderly end, the second for one at once."""
        if self._stopping:
            self._kill_all()
            self._end(128 + number)
            return
        self.events.info("draining", signal=signal.Signals(number).name)
        self._stopping = True
        self._change_door()
        for worker in self._workers.values():
            worker.drain()
        self._loop.create_task(self._wait_for_drain())

    async def _wait_for_drain(self) -> None:
        end = time.monotonic() + self.options.drain_seconds + _KILL_GRACE_SECONDS
        while self._workers and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self._kill_all()
        self._end(0)

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def _fail(self, error: FastServeError) -> None:
        self._stopping = True
        self._kill_all()
        if not self._ended.done():
            self._ended.set_exception(error)

    async def _finish(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Answer who came last, close the door, and wait for what was started."""
        self._listener.close()
        self._listener.take_all()
        self.listening.close()
        end = time.monotonic() + _FAREWELL_SECONDS
        while (self._connections.open or self._listener.is_busy) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self._connections.abort()
        keepers[-1].cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*keepers, return_exceptions=True), 10)
        self.events.info("stopped")
