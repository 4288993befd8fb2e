"""What supervisor and worker tell each other: JSON objects, one a line, over a socket pair. Never pickle."""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import dataclass
from typing import Any

import orjson

from fastserve.config import Section
from fastserve.serving.keys import Key
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions

DUMP_SIGNAL = signal.SIGUSR2
"""Makes a worker write the stack of every thread to standard error, also when it hangs."""
_LONGEST = 8 << 20


class WorkerOrder(Section):
    """The first line to a worker: all that it has to know.

    source: the ModelSource as module:Class. listening, board: inherited descriptors. fallback: by served name, the
    folder that is known to be good.
    """

    models: tuple[Named, ...]
    options: ServeOptions
    source: str
    keys: tuple[Key, ...]
    worker: int
    listening: int
    board: int
    fallback: dict[str, str]


@dataclass(slots=True)
class Channel:
    """One end of the pair."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        reader, writer = await asyncio.open_connection(sock=end, limit=_LONGEST)
        return cls(reader, writer)

    def send(self, event: str, **fields: Any) -> None:
        """Send if the other side is still there."""
        if not self.writer.is_closing():
            self.writer.write(orjson.dumps({"event": event, **fields}) + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other side is gone."""
        try:
            line = await self.reader.readline()
        except (OSError, ValueError):
            return None
        if not line.endswith(b"\n"):
            return None
        message: dict[str, Any] = orjson.loads(line)
        return message

    def close(self) -> None:
        self.writer.close()
