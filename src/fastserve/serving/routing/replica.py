"""One server behind the router: whether it is ready, what it owes, and how a request is handed to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import httptools

from fastserve.errors import ConfigError

_OWN = frozenset((b"connection", b"transfer-encoding", b"content-length", b"keep-alive", b"expect", b"host"))
"""Headers that belong to one connection, not to the request."""
_CONNECT_SECONDS = 3.0
_READ_BYTES = 64 << 10


class Gone(Exception):
    """The server could not be reached, or ended before its answer did."""


class Answer:
    """What comes back: status and headers first, then the body in pieces. Fed by the parser of Node.js."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.has_head = self.is_whole = False
        self.pieces: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Gone(f"its answer is not HTTP: {error}") from None

    def take(self) -> bytes:
        """The body that came since the last call."""
        found, self.pieces = b"".join(self.pieces), []
        return found

    # What the parser calls; names are its own.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status, self.has_head = self._parser.get_status_code(), True

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.is_whole = True


class Replica:
    """url: http://HOST:PORT or https://HOST[:PORT]. ConfigError for anything else."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.path not in ("", "/"):
            raise ConfigError(f"'{url}' is not the address of a server: expected http://HOST:PORT")
        self.secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, port or (443 if self.secure else 80)
        self.name = f"{parts.scheme}://{parts.netloc}"
        self.is_ready = self.was_ready = False
        """Now, and ever."""
        self.work = self.open = 0
        """Tokens, and requests, that it owes."""
        self.answered = self.failed = 0

    @asynccontextmanager
    async def ask(
        self, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> AsyncIterator[tuple[Answer, asyncio.StreamReader]]:
        """Send a request, and give its answer when its head is there. Gone where nothing comes back."""
        reader, writer = await self._connect()
        try:
            writer.write(self._request(method, target, headers, body))
            answer = Answer()
            while not answer.has_head:
                await self.read(answer, reader)
            yield answer, reader
        except (OSError, ssl.SSLError) as error:
            raise Gone(f"{self.name} does not answer: {error}") from None
        finally:
            writer.close()
            with suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    async def read(self, answer: Answer, reader: asyncio.StreamReader) -> None:
        """Feed the answer with what comes next. Gone where the connection ends before the answer."""
        data = await reader.read(_READ_BYTES)
        if data:
            answer.feed(data)
        elif not answer.is_whole:
            raise Gone(f"{self.name} ended before its answer was whole")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        wanted = asyncio.open_connection(self.host, self.port, ssl=self.secure or None)
        try:
            return await asyncio.wait_for(wanted, _CONNECT_SECONDS)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            raise Gone(f"{self.name} cannot be reached: {error or type(error).__name__}") from None

    def _request(self, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
        lines = [
            f"{method} {target} HTTP/1.1".encode("latin-1"),
            f"host: {self.host}:{self.port}".encode("latin-1"),
            b"connection: close",
            b"content-length: %d" % len(body),
            *(name + b": " + value for name, value in headers if name not in _OWN),
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    async def check(self, seconds: float) -> bool:
        """Whether it says that it is ready."""
        try:
            async with asyncio.timeout(seconds), self.ask("GET", "/v2/health/ready", (), b"") as (answer, _):
                return answer.status == 200
        except (Gone, TimeoutError):
            return False
