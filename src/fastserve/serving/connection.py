"""One HTTP/1.1 connection: bytes in, exchanges to the handler, replies out, in order.

Written on httptools (the parser of Node.js) because a general server spends a task, a scope and three awaits on each
request, which is more than the whole answer of a small model takes. Clients that dawdle, in sending or in taking their
answer, are ended by a sweep once a second, so that no request needs a timer of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import cast

from fastserve.serving.messages import Exchange, Handler, HttpLimits, Reply
from fastserve.serving.reading import RequestReader

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\ncontent-type: ".encode("ascii") for s in HTTPStatus}
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_PIPELINE = 16  # requests that may wait behind the one being handled before reading stops


class Connections:
    """All connections of one process: their limits, the clock that ends slow ones, the shared date header."""

    def __init__(self, handler: Handler, limits: HttpLimits) -> None:
        self.handler, self.limits = handler, limits
        self.open: set[Connection] = set()
        self.on_change: Callable[[int], None] = lambda count: None
        self.date = formatdate(usegmt=True).encode("ascii")
        self._ids = itertools.count(1)
        self._prefix = os.urandom(4).hex()

    def make(self) -> Connection:
        """A new connection (the protocol factory of asyncio)."""
        return Connection(self)

    def next_id(self) -> bytes:
        """A request id of our own, for a client that gave none."""
        return f"{self._prefix}-{next(self._ids):x}".encode("ascii")

    @property
    def is_full(self) -> bool:
        return len(self.open) >= self.limits.connections

    @property
    def busy(self) -> int:
        """Connections with a request that is being received or answered."""
        return sum(not connection.is_idle for connection in self.open)

    def sweep(self, now: float) -> None:
        """End what is late at `now` (monotonic seconds)."""
        self.date = formatdate(usegmt=True).encode("ascii")
        for connection in tuple(self.open):
            if connection.deadline < now:
                connection.expire()

    def close_idle(self) -> None:
        """Close every connection that rests between two requests."""
        for connection in tuple(self.open):
            if connection.is_idle:
                connection.close()

    def abort(self) -> None:
        """Cut every connection."""
        for connection in tuple(self.open):
            connection.abort()


class Connection(asyncio.Protocol):
    """The state of one connection."""

    def __init__(self, owner: Connections) -> None:
        self.owner = owner
        self._reader = RequestReader(owner.handler, owner.limits, self, self._receive, self._continue)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[Exchange, bool]] = deque()
        self._current: Exchange | None = None
        self._started: Reply | None = None
        self._keep_alive = True
        self._pumping = False
        self._closing = False
        self._write_paused = False
        self._until = time.monotonic() + owner.limits.header_seconds

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being received or answered."""
        return self._current is None and not self._reader.is_reading

    @property
    def deadline(self) -> float:
        """Until when the client must have done something, in monotonic seconds."""
        if self._closing or self._write_paused:
            return self._until
        if self._reader.is_reading:
            return self._reader.deadline
        return self._until if self._current is None else math.inf

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.owner.open.add(self)
        self.owner.on_change(len(self.owner.open))

    def connection_lost(self, error: Exception | None) -> None:
        self.owner.open.discard(self)
        self.owner.on_change(len(self.owner.open))
        self._transport = None
        self._waiting.clear()
        current, self._current = self._current, None
        if current is not None:
            current.leave()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # thrown away until the client closes its side
        self._reader.feed(data)
        if self._reader.refusal is not None:
            self._refuse()

    def pause_writing(self) -> None:
        """The client does not take its answers: take no more requests from it."""
        self._write_paused = True
        self._until = time.monotonic() + self.owner.limits.write_seconds
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._until = time.monotonic() + self.owner.limits.idle_seconds
        if self._transport is not None and len(self._waiting) < _PIPELINE:
            self._transport.resume_reading()

    # ---- requests in

    def _receive(self, exchange: Exchange, keep_alive: bool) -> None:
        self._waiting.append((exchange, keep_alive))
        if self._current is None:
            self._pump()
        elif len(self._waiting) == _PIPELINE and self._transport is not None:
            self._transport.pause_reading()

    def _pump(self) -> None:
        """Handle what waits, one at a time; a loop, since a handler may answer before `handle` returns."""
        if self._pumping:
            return
        self._pumping = True
        while self._waiting and self._current is None and not self._closing:
            self._current, self._keep_alive = self._waiting.popleft()
            if len(self._waiting) == _PIPELINE - 1 and self._transport is not None and not self._write_paused:
                self._transport.resume_reading()
            self.owner.handler.handle(self._current)
        self._pumping = False
        if self._current is None and self._reader.refusal is not None and not self._closing:
            self._refuse()

    def _refuse(self) -> None:
        """Answer a request that is not wholly read, once those before it are answered."""
        refusal = self._reader.refusal
        if self._current is None and not self._waiting and refusal is not None:
            self._current, self._keep_alive = self._reader.partial(), False
            self._current.respond(refusal)

    def _continue(self) -> None:
        """A client asks before it sends its body (curl does for long ones)."""
        if self._current is None and not self._waiting and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ---- replies out

    def send(self, exchange: Exchange, reply: Reply) -> None:
        """A whole answer, if it is this exchange's turn and its client is still there."""
        transport = self._transport
        if transport is None or exchange is not self._current:
            return
        now = time.monotonic()
        keep_alive = self._keep_alive and not self.owner.handler.draining
        length = b"content-length: %d" % len(reply.body)
        head = self._head(exchange, reply, length, keep_alive)
        transport.write(head + (b"" if exchange.method == "HEAD" else reply.body))
        self._done(exchange, reply, keep_alive, now)

    def start(self, exchange: Exchange, head: Reply) -> None:
        """The head of an answer in pieces: chunks, or until the connection ends for clients that know no chunks."""
        if self._transport is not None and exchange is self._current:
            self._started = head
            self._keep_alive = self._keep_alive and not exchange.is_old and not self.owner.handler.draining
            length = b"cache-control: no-cache" if exchange.is_old else b"transfer-encoding: chunked"
            self._transport.write(self._head(exchange, head, length, self._keep_alive))

    def write(self, exchange: Exchange, data: bytes) -> None:
        """A piece. A client that leaves too much of its answer lie is cut off, so that memory stays bounded."""
        transport = self._transport
        if transport is None or exchange is not self._current or transport.is_closing():
            return
        transport.write(data if exchange.is_old else b"%x\r\n%b\r\n" % (len(data), data))
        if transport.get_write_buffer_size() > self.owner.limits.unread_bytes:
            self.abort()

    def finish(self, exchange: Exchange) -> None:
        """The end of an answer in pieces."""
        started = self._started
        if self._transport is None or exchange is not self._current or started is None:
            return
        if not exchange.is_old:
            self._transport.write(b"0\r\n\r\n")
        self._done(exchange, started, self._keep_alive and not self.owner.handler.draining, time.monotonic())

    def _done(self, exchange: Exchange, reply: Reply, keep_alive: bool, now: float) -> None:
        self._current = self._started = None
        if not self._write_paused:
            self._until = now + self.owner.limits.idle_seconds
        self.owner.handler.finished(exchange, reply, now)
        if not keep_alive:
            self.close()
        elif self._waiting or self._reader.refusal is not None:
            self._pump()

    def _head(self, exchange: Exchange, reply: Reply, length: bytes, keep_alive: bool) -> bytes:
        given = exchange.headers.get(b"x-request-id")
        request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else self.owner.next_id()
        further = "".join([f"\r\n{name}: {value}" for name, value in reply.headers]) if reply.headers else ""
        return b"%b%b\r\n%b\r\ndate: %b\r\nx-request-id: %b%b%b\r\n\r\n" % (
            _STATUS_LINES[reply.status],
            reply.content_type.encode("ascii"),
            length,
            self.owner.date,
            request_id,
            further.encode("latin-1"),
            b"" if keep_alive else b"\r\nconnection: close",
        )

    # ---- the end

    def close(self) -> None:
        """Close our side once the answer is out, and the rest when the client closes its own.

        Closing at once while the client still sends would reset the connection and could take the answer with it.
        """
        if self._transport is None or self._closing:
            return
        self._closing = True
        self._waiting.clear()
        self._until = time.monotonic() + self.owner.limits.linger_seconds
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()

    def expire(self) -> None:
        """The deadline has passed."""
        if self._closing or self._write_paused:
            self.abort()
        elif self._reader.is_reading:
            self._reader.time_out()
            self._refuse()
        else:
            self.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()
