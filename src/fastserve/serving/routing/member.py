"""A whole server as a process of another one's, with which it ends.

`python -m fastserve.serving.routing.member DESCRIPTOR` is that process, started here and by nobody else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from fastserve import log
from fastserve.config import Section
from fastserve.errors import FastServeError
from fastserve.serving.keys import Key
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions
from fastserve.serving.supervisor import Supervisor

_REASON_BYTES = 64 << 10


class MemberOrder(Section):
    """The first line to a server. source: the ModelSource as module:Class; listening: an inherited descriptor."""

    models: tuple[Named, ...]
    options: ServeOptions
    source: str
    keys: tuple[Key, ...]
    listening: int


class MemberProcess:
    """A server that was just started."""

    def __init__(self, order: MemberOrder) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fastserve.serving.routing.member", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), order.listening),
            )
        self._channel.sendall(order.model_dump_json().encode("utf-8") + b"\n")

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        return self._process.wait()

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, seconds: float) -> None:
        """Have it finish what it has, within so many seconds."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def reason(self) -> str:
        """Of one that ended: why it could not go on; "" where it did not say."""
        with suppress(ConnectionError):
            return self._channel.recv(_REASON_BYTES).decode("utf-8", "replace")
        return ""

    def __enter__(self) -> MemberProcess:
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of it: it ends, if it has not."""
        self._channel.close()


def main() -> int:
    """A member, which ends with the process that started it."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    with channel.makefile("rb") as lines:
        order = MemberOrder.model_validate_json(lines.readline())
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    log.configure()
    listening = socket.socket(fileno=order.listening)
    try:
        supervisor = Supervisor(order.models, order.options, order.source, listening, order.keys)
        return asyncio.run(supervisor.run())
    except FastServeError as error:
        print(f"error: {error}", file=sys.stderr)
        with suppress(OSError):
            channel.sendall(str(error).encode("utf-8"))
        return error.exit_code


def _end_with(channel: socket.socket) -> None:
    """Wait until the other end is closed, which nothing but the other process's end does."""
    channel.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
