"""Bytes to requests: the parser's callbacks, and every limit on what a client may send."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import httptools

from fastserve.serving.messages import Answerer, Exchange, Handler, HttpError, HttpLimits, Reply

_ONLY_ONCE = frozenset((b"authorization", b"content-length", b"host", b"inference-header-content-length"))


class RequestReader:
    """Reads the requests of one connection with httptools.

    received(exchange, keep_alive) is called for each complete request. `refusal` is set when the rest of the connection
    cannot be read or must not be: the reply to send before it is closed.
    """

    def __init__(
        self,
        handler: Handler,
        limits: HttpLimits,
        answerer: Answerer,
        received: Callable[[Exchange, bool], None],
        may_continue: Callable[[], None],
    ) -> None:
        self.handler, self.limits = handler, limits
        self.answerer, self.received, self.may_continue = answerer, received, may_continue
        self.refusal: Reply | None = None
        self.is_reading = False
        self.deadline = 0.0
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: bytes | bytearray = b""
        self._exchange: Exchange | None = None
        self._silent_bytes = self._header_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what arrived. Callbacks run inside; look at `refusal` afterwards."""
        if not self.is_reading:
            self.is_reading = True
            self.deadline = time.monotonic() + self.limits.header_seconds
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[cast("int", upgrade.args[0]) :])
        except httptools.HttpParserError as error:
            if self.refusal is None:
                self._refuse(HttpError(400, f"this is not an HTTP/1.1 request: {error}").reply())
        if self._silent_bytes > self.limits.header_bytes:
            self._refuse(self._too_long_headers())

    def _stay(self, rest: bytes) -> None:
        """A wish to change the protocol (h2c, websocket) is answered as the HTTP/1.1 request that it also is."""
        self._parser = httptools.HttpRequestParser(self)
        if rest and self.refusal is None:
            self.feed(rest)

    def time_out(self) -> None:
        """The sender was too slow."""
        part = "headers" if self._exchange is None else "body"
        self._refuse(HttpError(408, f"the {part} of the request did not arrive in time").reply(self._path))

    def partial(self) -> Exchange:
        """The request that was refused, as far as it is known."""
        if self._exchange is not None:
            return self._exchange
        return Exchange("", "", "", self._headers, self.answerer, time.monotonic())

    def _refuse(self, reply: Reply) -> None:
        if self.refusal is None:
            self.refusal = reply

    # What the parser calls; names are its own. Nothing here may raise: the parser would hide it.

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            return  # trailers say nothing that is used here
        name = name.lower()
        self._header_bytes += len(name) + len(value) + 4
        if name in self._headers:
            if name in _ONLY_ONCE:
                self._refuse(HttpError(400, f"header {name.decode('latin-1')} is given twice").reply())
            value = self._headers[name] + b", " + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        now = time.monotonic()
        target, _, query = self._target.decode("latin-1").partition("?")
        method = self._parser.get_method().decode("ascii")
        is_old = self._parser.get_http_version() == "1.0"
        self._exchange = Exchange(method, target, query, self._headers, self.answerer, now, is_old=is_old)
        refusal = self._check_headers() or self.handler.admit(self._exchange)
        if refusal is not None:
            self._refuse(refusal)
        elif b"expect" in self._headers:
            self.may_continue()
        self.deadline = now + self.limits.body_seconds
        self._silent_bytes = 0

    def on_body(self, body: bytes) -> None:
        if self.refusal is not None:
            return
        self._silent_bytes = 0
        if not self._body:
            self._body = body
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body
        if len(self._body) > self.limits.body_bytes:
            self._refuse(self._too_long_body())

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if self.refusal is not None or exchange is None:
            return
        exchange.body = bytes(self._body)  # no copy where it already is bytes
        self.is_reading = False
        self._begin()
        self.received(exchange, self._parser.should_keep_alive())

    def _check_headers(self) -> Reply | None:
        headers, limits = self._headers, self.limits
        if len(self._target) + self._header_bytes > limits.header_bytes or len(headers) > limits.headers:
            return self._too_long_headers()
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return HttpError(400, "content-length is not a number").reply()
        if int(length[:20]) > limits.body_bytes:
            return self._too_long_body()
        return None

    def _too_long_headers(self) -> Reply:
        limits = self.limits
        return HttpError(
            431, f"the request line and headers are over {limits.header_bytes} bytes or {limits.headers} headers"
        ).reply()

    def _too_long_body(self) -> Reply:
        return HttpError(413, f"the body is longer than {self.limits.body_bytes} bytes").reply(self._path)

    @property
    def _path(self) -> str:
        return "" if self._exchange is None else self._exchange.path
