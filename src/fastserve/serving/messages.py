"""The nouns of HTTP here: a request, its reply, and the exchange that joins them. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

JSON = "application/json"
BINARY = "application/octet-stream"
Headers = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to the client. `headers` are further header lines, names in lower case."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class HttpError(Exception):
    """A request that is answered by an error status. `retry_after`: seconds after which trying again makes sense."""

    def __init__(
        self, status: int, message: str, *, retry_after: int | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = headers if retry_after is None else (*headers, ("retry-after", str(retry_after)))

    def reply(self) -> Reply:
        return Reply(self.status, orjson.dumps({"error": self.message}), headers=self.headers)


def json_reply(content: Any, status: int = 200) -> Reply:
    """`content` as JSON; numpy arrays and scalars are written in the shortest form that reads back the same."""
    return Reply(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


class Exchange:
    """One request on its way through the server. `respond` is called exactly once, now or later.

    `on_leave` is called when the client goes away before its answer: what was started for it should stop.
    """

    __slots__ = ("_send", "body", "headers", "method", "model", "on_leave", "path", "query", "started")

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        headers: Headers,
        send: Callable[[Exchange, Reply], None],
        started: float,
    ) -> None:
        self.method, self.path, self.query, self.headers = method, path, query, headers
        self.body = b""
        self.started = started
        self.model = ""
        self.on_leave: Callable[[], None] | None = None
        self._send: Callable[[Exchange, Reply], None] | None = send

    @property
    def is_open(self) -> bool:
        """Whether an answer is still owed to a client that is still there."""
        return self._send is not None

    def respond(self, reply: Reply) -> None:
        """Send the answer. After a client left this does nothing; a second answer to one request is a defect."""
        send, self._send, self.on_leave = self._send, None, None
        if send is not None:
            send(self, reply)

    def leave(self) -> None:
        """The client went away."""
        self._send = None
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None:
            on_leave()


class Handler(Protocol):
    """What stands behind a connection: the app of a worker, or the supervisor's `we are not there yet`."""

    def admit(self, exchange: Exchange) -> Reply | None:
        """Look at the headers before the body is taken; a reply refuses the request."""

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange`, whose body is complete, by its `respond`; must not raise."""

    def finished(self, exchange: Exchange, reply: Reply, now: float) -> None:
        """`reply` was given to the system at `now` (monotonic seconds): count it, log it."""

    @property
    def draining(self) -> bool:
        """Whether connections should be closed after their answer."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a connection accepts; sizes in bytes, times in seconds."""

    header_bytes: int = 32 << 10
    body_bytes: int = 8 << 20
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    connections: int = 4096
    linger_seconds: float = 2.0
    headers: int = 100
