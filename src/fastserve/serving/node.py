"""One serving process without its process: models, app, connections, listener, the clock and the watch for versions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.errors import FastServeError, ServingError
from fastserve.serving.app import App
from fastserve.serving.board import Board
from fastserve.serving.connection import Connections
from fastserve.serving.deployment import Deployment, Place, Slot
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate, Key
from fastserve.serving.listener import Listener
from fastserve.serving.loopback import find_faults
from fastserve.serving.messages import HttpLimits
from fastserve.serving.model import Named
from fastserve.serving.options import HttpOptions, ServeOptions
from fastserve.serving.source import ModelSource

_IDLE_GRACE_SECONDS = 0.5  # a resting connection may have a request on its way


class Node:
    """Serves `models` on `listening`. worker: its row on the board."""

    def __init__(
        self,
        models: Sequence[Named],
        options: ServeOptions,
        source: ModelSource,
        *,
        keys: Sequence[Key] = (),
        board: Board | None = None,
        worker: int = 0,
        events: Events | None = None,
    ) -> None:
        self.options, self.source, self.worker = options, source, worker
        self.slots = {model.name: Slot(model.name, model.reference) for model in models}
        self.board = board or Board(list(self.slots), keys=len(keys))
        self.events = events or Events(level=options.log_level)
        gate = Gate(keys, rate=options.requests_per_second, burst=options.burst, state=self.board.keys)
        self.app = App(self.slots, options, gate, self.board, worker, self.events)
        self.connections = Connections(self.app, http_limits(options))
        self._row = self.board.row(worker, "")
        self.connections.on_change = functools.partial(self._row.__setitem__, "connections")
        self.on_swap: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: Listener | None = None

    @property
    def folders(self) -> dict[str, str]:
        """The folder in charge under each name."""
        return {name: str(slot.current.folder) for name, slot in self.slots.items() if slot.current is not None}

    async def load(self, fallback: Mapping[str, str] | None = None) -> None:
        """Load every model and pass it through the gate. fallback: by name, a folder that is known to be good, taken
        when what the reference means now cannot serve. ServingError where a model cannot."""
        self.board.clear_gauges(self.worker)
        for slot in self.slots.values():
            folder = self.source.resolve(slot.reference)
            good = Path(fallback[slot.name]) if fallback and slot.name in fallback else None
            try:
                slot.current = await self._passed(slot, folder)
            except FastServeError as error:
                if good is None or good == folder:
                    raise
                self._refuse(slot, folder, error)
                slot.current = await self._passed(slot, good)
            self.events.info("model ready", model=slot.name, folder=slot.current.folder, **slot.current.traits())
        self.app.refresh()

    async def _passed(self, slot: Slot, folder: Path) -> Deployment:
        """A deployment of `folder` that passed the gate, or ServingError."""
        place = Place(self.board.row(self.worker, slot.name), self.options, self.events)
        deployment = await self.source.deploy(folder, place)
        faults = await find_faults(deployment, self.options)
        if faults:
            await deployment.retire()
            shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
            raise ServingError(
                f"model '{slot.name}' in {folder} does not answer as its evaluation did: {shown}. "
                "Try another --runtime or --precision, or train it again with this version of FastServe"
            )
        return deployment

    def open(self, listening: socket.socket) -> None:
        """Take connections, and begin to look after them."""
        yields = (lambda: self.board.has_most_connections(self.worker)) if self.board.workers > 1 else lambda: False
        self._listener = Listener(listening, self.connections, yields)
        self._listener.open()
        self._row["accepting"] = 1
        self._tasks = [self._start(self._tick), self._start(self._watch)]

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.options.header_seconds / 4))
            self.connections.sweep(time.monotonic())
            self.app.set_gauges()
            if self._listener is not None:
                self._listener.look()

    async def _watch(self) -> None:
        """See whether a reference means another folder now, and swap it in."""
        while True:
            await asyncio.sleep(self.options.watch_seconds)
            for slot in self.slots.values():
                with contextlib.suppress(FastServeError, OSError):  # a registry that is being written; next time
                    folder = await self._resolve(slot.reference)
                    if slot.current is not None and folder != slot.current.folder and not self._known_bad(slot, folder):
                        await self._swap(slot, folder)

    async def _resolve(self, reference: str) -> Path:
        return await asyncio.get_running_loop().run_in_executor(None, self.source.resolve, reference)

    @staticmethod
    def _known_bad(slot: Slot, folder: Path) -> bool:
        return slot.refused is not None and slot.refused[0] == folder

    async def _swap(self, slot: Slot, folder: Path) -> None:
        """Load `folder` beside the version in charge, and let it take over if it passes the gate."""
        try:
            new = await self._passed(slot, folder)
        except Exception as error:  # whatever is wrong with the new version, the old one goes on
            self._refuse(slot, folder, error)
            return
        old, slot.current, slot.refused = slot.current, new, None
        self.app.refresh()
        new.row.add("swaps")
        self.events.info("version swapped", model=slot.name, folder=folder)
        self.on_swap()
        if old is not None:
            await old.retire()

    def _refuse(self, slot: Slot, folder: Path, error: Exception) -> None:
        reason = str(error) if isinstance(error, FastServeError) else type(error).__name__
        slot.refused = (folder, reason)
        self.board.row(self.worker, slot.name).add("refused")
        self.events.error("version refused", model=slot.name, folder=folder, reason=reason)

    async def drain(self) -> None:
        """Take nothing new, finish what was accepted (up to `drain_seconds`), and close."""
        self.app.draining = True
        self._row["accepting"] = 0
        if self._listener is not None:
            self._listener.close()
        end = time.monotonic() + self.options.drain_seconds
        rest = time.monotonic() + _IDLE_GRACE_SECONDS
        while (self.connections.open or self._is_adopting) and time.monotonic() < end:
            if time.monotonic() > rest:
                self.connections.close_idle()
            await asyncio.sleep(0.02)
            self.connections.sweep(time.monotonic())
        if self.connections.busy:
            self.events.warning("drain ran out of time", requests=self.connections.busy)
        await self.close()

    @property
    def _is_adopting(self) -> bool:
        return self._listener is not None and self._listener.is_busy

    async def close(self) -> None:
        """End at once."""
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        self.connections.abort()
        for slot in self.slots.values():
            if slot.current is not None:
                await slot.current.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def http_limits(options: HttpOptions) -> HttpLimits:
    """The part of the options that a connection needs."""
    return HttpLimits(
        header_bytes=options.max_header_bytes,
        body_bytes=options.max_body_bytes,
        header_seconds=options.header_seconds,
        body_seconds=options.body_seconds,
        idle_seconds=options.idle_seconds,
        write_seconds=options.write_seconds,
        unread_bytes=options.max_unread_bytes,
        connections=options.max_connections,
    )
