"""An engine's process: `python -m fastserve.serving.generation.process DESCRIPTOR`, started by a worker alone.

It reads its order from the inherited descriptor, loads, says that it is ready, and steps while there is work. A thread
reads what comes, so that the process ends with its worker whatever the network is computing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import orjson

from fastserve.errors import FastServeError
from fastserve.plugins import import_object
from fastserve.serving.channel import DUMP_SIGNAL
from fastserve.serving.events import Events
from fastserve.serving.generation.source import LoadedEngine
from fastserve.serving.generation.wire import EngineOrder, Refusal, read_order, write_output

_BEAT_SECONDS = 0.25  # between two looks at the engine's numbers, which are also its sign of life


class EngineProcess:
    """Carries out what comes over `end`."""

    def __init__(self, end: socket.socket) -> None:
        self.end, self.lines = end, end.makefile("rb")
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.last_beat = 0.0

    def run(self) -> int:
        """The exit code; the process also ends when the worker does."""
        first = self.lines.readline()
        if not first:
            return 1
        order = EngineOrder.model_validate_json(first)
        threading.Thread(target=self._read, name="inbox", daemon=True).start()
        try:
            loaded: LoadedEngine = import_object(order.source)().load(order)
        except FastServeError as error:
            self._send("failed", message=str(error), exit_code=error.exit_code)
            return error.exit_code
        gc.collect()
        gc.freeze()
        self._send("ready", facts=asdict(loaded.facts))
        self._serve(loaded)
        return 0

    def _read(self) -> None:
        for line in self.lines:
            self.inbox.put(orjson.loads(line))
        os._exit(0)  # the worker is gone, and nobody would hear the rest

    def _send(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # the thread that reads ends the process
            self.end.sendall(orjson.dumps({"event": event, **fields}) + b"\n")

    def _serve(self, loaded: LoadedEngine) -> None:
        engine = loaded.engine
        while True:
            self._obey_all(loaded)
            is_busy = engine.has_work
            if is_busy and (outputs := engine.step()):
                self._send("outputs", of=[write_output(output) for output in outputs])
            if is_busy != engine.has_work:
                self.last_beat = 0.0  # the last numbers before it rests are those of one that rests
            if (now := time.monotonic()) - self.last_beat > _BEAT_SECONDS:
                self.last_beat = now
                self._send("stats", stats=asdict(engine.stats()))

    def _obey_all(self, loaded: LoadedEngine) -> None:
        """What has come; where there is no work, wait for it, but not past the next beat."""
        with contextlib.suppress(queue.Empty):
            if not loaded.engine.has_work:
                self._obey(loaded, self.inbox.get(timeout=_BEAT_SECONDS))
            while True:
                self._obey(loaded, self.inbox.get_nowait())

    def _obey(self, loaded: LoadedEngine, message: dict[str, Any]) -> None:
        match message["op"]:
            case "add":
                self._add(loaded, message["order"])
            case "cancel":
                loaded.engine.cancel(message["id"])
                self.last_beat = 0.0  # whoever looks at the numbers sees at once that it is gone
            case "refer":
                found = loaded.refer(message["prompts"], message["tokens"], message["texts"])
                self._send("referred", found=asdict(found))

    def _add(self, loaded: LoadedEngine, content: dict[str, Any]) -> None:
        try:
            loaded.engine.add(read_order(content))
        except FastServeError as error:
            self._send("refused", id=content["id"], refusal=asdict(Refusal.of(error)))
        else:
            self._send("accepted", id=content["id"])


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the worker decides; what is being written goes on while it drains
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    try:
        return EngineProcess(socket.socket(fileno=int(sys.argv[1]))).run()
    except Exception as error:  # told without its message, which may quote a user's text
        Events(level="error").defect("engine failed", error)
        return 70


if __name__ == "__main__":
    sys.exit(main())
