"""The server's log: one JSON object a line, with what happened and never what a user wrote."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any, TextIO

import orjson

from fastserve.serving.messages import Exchange, Reply

_LEVELS = {"info": 0, "warning": 1, "error": 2}


class Events:
    """Writes events to `stream` (standard error where None). worker: its number, None in the supervisor."""

    def __init__(self, *, worker: int | None = None, level: str = "info", stream: TextIO | None = None) -> None:
        self.worker, self.level, self.stream = worker, _LEVELS[level], stream

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def defect(self, event: str, error: BaseException, **fields: Any) -> None:
        """An exception that nobody expected: its type and where, not its message, which may quote a user's text."""
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
        self.error(event, kind=type(error).__name__, where=where[-8:], **fields)

    def access(self, exchange: Exchange, reply: Reply, seconds: float) -> None:
        """One request that was answered."""
        self._write(
            "info",
            "request",
            {
                "method": exchange.method,
                "path": exchange.path[:200],
                "status": reply.status,
                "milliseconds": round(seconds * 1e3, 3),
                "bytes_in": len(exchange.body),
                "bytes_out": exchange.sent + len(reply.body),
            },
        )

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if _LEVELS[level] < self.level:
            return
        line: dict[str, Any] = {"time": round(time.time(), 3), "level": level, "event": event}
        if self.worker is not None:
            line["worker"] = self.worker
        stream = self.stream or sys.stderr
        stream.write(orjson.dumps(line | fields, default=str).decode() + "\n")
        stream.flush()
