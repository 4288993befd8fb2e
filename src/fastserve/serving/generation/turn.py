"""One request for texts on its way: the engine's tokens to the client, and a client that leaves to the engine.

It ends in exactly one way: answered, refused, broken (the engine ended), or left by its client; and in each of them
nothing of it stays in the engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from fastserve.errors import Overloaded
from fastserve.generation.orders import Order, Output
from fastserve.serving.generation.client import EngineClient
from fastserve.serving.generation.forms import Answer
from fastserve.serving.generation.wire import Refusal
from fastserve.serving.messages import Exchange, HttpError, Reply, json_reply

_STREAM = Reply(200, b"", "text/event-stream; charset=utf-8", (("cache-control", "no-cache"),))
_DONE = b"data: [DONE]\n\n"


class Watcher(Protocol):
    """Who counts what becomes of requests."""

    def first_token(self, seconds: float) -> None: ...

    def next_token(self, seconds: float) -> None: ...

    def finished(self, answer: Answer, seconds: float) -> None: ...

    def left(self) -> None: ...

    def broke(self) -> None: ...


class Turn:
    """Carries `orders` to the engine and its tokens to `exchange`. tells_usage: at the end of a stream."""

    def __init__(
        self,
        exchange: Exchange,
        client: EngineClient,
        answer: Answer,
        orders: Sequence[Order],
        watcher: Watcher,
        *,
        streams: bool,
        tells_usage: bool,
    ) -> None:
        self.exchange, self.client, self.answer, self.watcher = exchange, client, answer, watcher
        self.streams, self.tells_usage = streams, tells_usage
        self.orders = {order.id: order for order in orders}
        self._places = _places(orders)
        self._awaited = set(self.orders)
        self._left = {order.id: order.sampling.n for order in orders}
        self._early: list[bytes] = []
        self._last: dict[int, float] = {}

    def begin(self) -> None:
        """Submit everything, or answer that it cannot be."""
        self.exchange.on_leave = self._leave
        for order in self.orders.values():
            try:
                self.client.submit(order, self)
            except Overloaded as error:
                return self._refuse(Refusal("overloaded", str(error), error.retry_after))
        return None

    # ---- what the engine says

    def accepted(self, order: Order) -> None:
        self._awaited.discard(order.id)
        if not self._awaited and self.streams:
            self.exchange.start(_STREAM)
            for piece in self.answer.openings():
                self.exchange.write(self._message([piece]))
            for data in self._early:
                self.exchange.write(data)
            self._early.clear()

    def refused(self, order: Order, refusal: Refusal) -> None:
        self._refuse(refusal)

    def take(self, output: Output) -> None:
        if output.error is not None:
            self._cancel()
            return self._fail(output.error)
        index = self._places[output.id] + output.copy
        self._measure(index)
        piece = self.answer.take(index, output, keep=not self.streams)
        if output.ends:
            self._left[output.id] -= 1
            if not self._left[output.id]:
                self.client.done(output.id)
        if piece is not None:
            self._write(self._message([piece]))
        if self.answer.is_whole:
            self._finish()
        return None

    def broken(self, message: str) -> None:
        self._fail(message)

    # ---- how it ends

    def _finish(self) -> None:
        self.watcher.finished(self.answer, time.monotonic() - self.exchange.started)
        if not self.streams:
            return self.exchange.respond(json_reply(self.answer.whole()))
        if self.tells_usage:
            self._write(_event({**self.answer.chunk([]), "usage": self.answer.usage()}))
        self._write(_DONE)
        return self.exchange.finish()

    def _refuse(self, refusal: Refusal) -> None:
        self._cancel()
        self.exchange.respond(_error(refusal).reply(self.exchange.path))

    def _fail(self, message: str) -> None:
        """Something went wrong on our side."""
        self.watcher.broke()
        error = HttpError(500, message)
        if self.streams and not self._awaited:
            self._write(_event(error.content()))
            self._write(_DONE)
            self.exchange.finish()
        else:
            self.exchange.respond(error.reply(self.exchange.path))

    def _leave(self) -> None:
        self.watcher.left()
        self._cancel()

    def _cancel(self) -> None:
        for name in self.orders:
            self.client.cancel(name)

    # ---- the stream

    def _write(self, data: bytes) -> None:
        """Now, or when all orders are accepted: until then the answer may still be a refusal."""
        if self._awaited:
            self._early.append(data)
        else:
            self.exchange.write(data)

    def _message(self, choices: Sequence[dict[str, Any]]) -> bytes:
        return _event(self.answer.chunk(choices, tells_usage=self.tells_usage))

    def _measure(self, index: int) -> None:
        now = time.monotonic()
        before = self._last.get(index)
        if before is not None:
            self.watcher.next_token(now - before)
        elif not self._last:
            self.watcher.first_token(now - self.exchange.started)
        self._last[index] = now


def _places(orders: Sequence[Order]) -> dict[str, int]:
    """The index of the first text of each order."""
    places, place = {}, 0
    for order in orders:
        places[order.id] = place
        place += order.sampling.n
    return places


def _event(content: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(content)


def _error(refusal: Refusal) -> HttpError:
    match refusal.kind:
        case "overloaded":
            retry_after = max(1, min(60, math.ceil(refusal.retry_after)))
            return HttpError(503, f"overloaded: {refusal.message}", retry_after=retry_after, code="overloaded")
        case "input":
            return HttpError(400, refusal.message)
    return HttpError(500, refusal.message)
