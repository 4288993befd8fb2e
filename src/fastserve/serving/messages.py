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


SHARED_PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
"""Verbs of models that are named in the body, as `model`, and where they are asked: the OpenAI API."""
OPENAI_PATHS = frozenset(SHARED_PATHS.values())
"""Where errors have the form of the OpenAI API."""
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error"}


class HttpError(Exception):
    """A request that is answered by an error status. `retry_after`: seconds after which trying again makes sense.

    param: the field of the request that is at fault; code: the OpenAI API's word for the fault, where it has one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers if retry_after is None else (*headers, ("retry-after", str(retry_after)))

    def reply(self, path: str = "") -> Reply:
        """The error in the form that belongs to `path`."""
        content = self.content() if path in OPENAI_PATHS else {"error": self.message}
        return Reply(self.status, orjson.dumps(content), headers=self.headers)

    def content(self) -> dict[str, Any]:
        """The error as an object of the OpenAI API."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def json_reply(content: Any, status: int = 200) -> Reply:
    """`content` as JSON; numpy arrays and scalars are written in the shortest form that reads back the same."""
    return Reply(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


def read_object(body: bytes) -> dict[str, Any]:
    """A body that must be a JSON object."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise HttpError(400, "the body must be a JSON object")
    return content


class Answerer(Protocol):
    """What takes the answers of an exchange: its connection."""

    def send(self, exchange: Exchange, reply: Reply) -> None:
        """A whole answer."""

    def start(self, exchange: Exchange, head: Reply) -> None:
        """Status and headers of an answer that comes in pieces; `head.body` is not sent."""

    def write(self, exchange: Exchange, data: bytes) -> None:
        """A piece of it, not empty."""

    def finish(self, exchange: Exchange) -> None:
        """All pieces were given."""


class Exchange:
    """One request on its way through the server. It is answered once, now or later: by `respond`, or in pieces by
    `start`, any number of `write` and `finish`.

    `on_leave` is called when the client goes away before its answer is whole: what was started for it should stop.
    key: the name of the API key that asked; content: the body as JSON, where that was read; sent: bytes of pieces.
    """

    __slots__ = (
        "_answerer",
        "body",
        "content",
        "headers",
        "is_old",
        "key",
        "method",
        "model",
        "on_leave",
        "path",
        "query",
        "sent",
        "started",
    )

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        headers: Headers,
        answerer: Answerer,
        started: float,
        *,
        is_old: bool = False,
    ) -> None:
        self.method, self.path, self.query, self.headers = method, path, query, headers
        self.body = b""
        self.content: dict[str, Any] = {}
        self.started = started
        self.is_old = is_old
        """Whether the client speaks HTTP/1.0, which knows no chunks."""
        self.model = self.key = ""
        self.sent = 0
        self.on_leave: Callable[[], None] | None = None
        self._answerer: Answerer | None = answerer

    @property
    def is_open(self) -> bool:
        """Whether an answer, or the rest of one, is still owed to a client that is still there."""
        return self._answerer is not None

    def respond(self, reply: Reply) -> None:
        """Send the answer. After a client left this does nothing; a second answer to one request is a defect."""
        answerer = self._close()
        if answerer is not None:
            answerer.send(self, reply)

    def start(self, head: Reply) -> None:
        """Begin an answer that comes in pieces."""
        if self._answerer is not None:
            self._answerer.start(self, head)

    def write(self, data: bytes) -> None:
        """Send a piece."""
        if self._answerer is not None and data:
            self.sent += len(data)
            self._answerer.write(self, data)

    def finish(self) -> None:
        """End an answer that came in pieces."""
        answerer = self._close()
        if answerer is not None:
            answerer.finish(self)

    def leave(self) -> None:
        """The client went away."""
        on_leave = self.on_leave
        self._close()
        if on_leave is not None:
            on_leave()

    def _close(self) -> Answerer | None:
        answerer, self._answerer, self.on_leave = self._answerer, None, None
        return answerer


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
    """What a connection accepts; sizes in bytes, times in seconds.

    unread_bytes: of an answer in pieces, what may wait here for a client that does not take it.
    """

    header_bytes: int = 32 << 10
    body_bytes: int = 8 << 20
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    unread_bytes: int = 1 << 20
    connections: int = 4096
    linger_seconds: float = 2.0
    headers: int = 100
