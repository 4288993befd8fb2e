"""Accepting connections from a socket that several processes share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable

from fastserve.errors import ServingError
from fastserve.serving.connection import Connections

_BACKLOG = 1024
_YIELD_SECONDS = 0.001
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Takes one connection each time the event loop turns.

    A server's own accept loop would empty the whole backlog into the first process that wakes. Here a process that
    has more connections than another (`should_yield`) leaves the next to the others for a moment, and a full one leaves
    all to them.
    """

    def __init__(
        self, listening: socket.socket, connections: Connections, should_yield: Callable[[], bool] = lambda: False
    ) -> None:
        self._listening, self._connections, self._should_yield = listening, connections, should_yield
        self._loop = asyncio.get_running_loop()
        self._is_open = False
        self._adopting: set[asyncio.Task[object]] = set()

    def open(self) -> None:
        """Begin to take connections."""
        if not self._is_open:
            self._is_open = True
            self._listening.setblocking(False)
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def close(self) -> None:
        """Stop taking connections; those taken stay."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._listening.fileno())

    def look(self) -> None:
        """Take connections again where there is room again."""
        if self._is_open and not self._connections.is_full:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    @property
    def is_busy(self) -> bool:
        """Whether a connection that was taken is not yet among the connections."""
        return bool(self._adopting)

    def take_all(self) -> None:
        """Take whatever waits, before the socket is closed and the system resets the rest."""
        while self._take():
            continue

    def _accept(self) -> None:
        if self._should_yield():
            self._loop.remove_reader(self._listening.fileno())
            self._loop.call_later(_YIELD_SECONDS, self._insist)
        elif self._connections.is_full or not self._take():
            self._rest_if_full()

    def _insist(self) -> None:
        """Take what the others left: they may be busy, or hang."""
        if self._is_open:
            self._loop.add_reader(self._listening.fileno(), self._accept)
            if not self._connections.is_full:
                self._take()

    def _rest_if_full(self) -> None:
        """Leave new connections to other processes until `look` finds room."""
        if self._connections.is_full and self._is_open:
            self._loop.remove_reader(self._listening.fileno())

    def _take(self) -> bool:
        """Take one connection; False where none waits, or the system has no room for it."""
        try:
            accepted, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another process was faster, or the client left
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._loop.remove_reader(self._listening.fileno())
            return False
        accepted.setblocking(False)
        task = self._loop.create_task(self._adopt(accepted))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)
        return True

    async def _adopt(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(self._connections.make, accepted)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. ServingError where the address is taken or is not this machine's."""
    plain = host.strip("[]")
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((plain, port))
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ServingError(_reason(error, host, port)) from error
    return listening


def _reason(error: Exception, host: str, port: int) -> str:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use by another process (`ss -ltnp 'sport = :{port}'` shows which); "
            "end it, or choose another with --port (0 takes a free one)"
        )
    if code == errno.EACCES:
        return f"port {port} needs more rights than this process has; choose one above 1023 with --port"
    return f"cannot listen on {host} port {port}: {error}; expected an address of this machine"


def address(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    return f"http://{shown}:{port}"
