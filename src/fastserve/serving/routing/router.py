"""Hands each request to one of several servers, and its answer back as it comes.

A server that cannot be reached, or says that it has no room, is passed over for another, as long as nothing of an
answer was given to the client. A client that leaves ends its request at the server too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from fastserve.serving.events import Events
from fastserve.serving.keys import Gate
from fastserve.serving.messages import JSON, OPENAI_PATHS, Exchange, HttpError, Reply, json_reply
from fastserve.serving.metrics import CONTENT_TYPE
from fastserve.serving.routing.affinity import Affinity, blocks_of, prompt_of, work_of
from fastserve.serving.routing.replica import Answer, Gone, Replica

CHECK_SECONDS = 1.0
"""Between two looks at whether a server is ready, and how long that may take."""
_DROPPED = frozenset((b"connection", b"transfer-encoding", b"content-length", b"keep-alive", b"date", b"content-type"))
_STREAM = b"text/event-stream"
_ERROR_EVENT = b"data: %b\n\n"


class Router:
    """A handler of connections. replicas: those that are known from the start; `follow` says which there are now."""

    def __init__(self, replicas: Sequence[Replica], gate: Gate, events: Events) -> None:
        self.replicas, self.gate, self.events = tuple(replicas), gate, events
        self.affinity = Affinity()
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- the handler's side

    def admit(self, exchange: Exchange) -> Reply | None:
        if exchange.path in ("/v2/health/live", "/v2/health/ready"):
            return None
        try:
            self.gate.check(exchange.headers)
            if self.draining:
                raise HttpError(503, "the server is shutting down", retry_after=1)
        except HttpError as error:
            return error.reply(exchange.path)
        return None

    def handle(self, exchange: Exchange) -> None:
        match exchange.path:
            case "/v2/health/live":
                exchange.respond(json_reply({"live": True}))
            case "/v2/health/ready":
                exchange.respond(json_reply({"ready": self.is_ready}, 200 if self.is_ready else 503))
            case "/metrics":
                exchange.respond(Reply(200, self._metrics(), CONTENT_TYPE))
            case _:
                self._begin(exchange)

    def finished(self, exchange: Exchange, reply: Reply, now: float) -> None:
        """The servers count for themselves."""

    @property
    def is_ready(self) -> bool:
        return not self.draining and any(replica.is_ready for replica in self.replicas)

    def _begin(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.on_leave = lambda: _end(task)

    # ---- one request

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._try_all(exchange)
        except HttpError as error:
            exchange.respond(error.reply(exchange.path))
        except Exception as error:  # a defect must not leave a client without an answer
            self.events.defect("request failed", error, path=exchange.path)
            exchange.respond(HttpError(500, "internal error; the router's log says more").reply(exchange.path))

    async def _try_all(self, exchange: Exchange) -> None:
        content = _content(exchange)
        prompt = prompt_of(content)
        blocks = blocks_of(prompt, str(content.get("model", "")))
        work = work_of(content, prompt) if prompt else len(exchange.body) // 3
        left = [replica for replica in self.replicas if replica.is_ready]
        busy: Reply | None = None
        while left:
            replica = self.affinity.choose(blocks, left)
            left.remove(replica)
            self.affinity.note(blocks, replica.name)
            try:
                busy = await self._hand(exchange, replica, work)
            except Gone as error:
                self._lost(replica, str(error))
                continue
            if busy is None:
                return
        if busy is None:
            raise HttpError(503, "none of the servers can be reached", retry_after=1)
        exchange.respond(busy)

    async def _hand(self, exchange: Exchange, replica: Replica, work: int) -> Reply | None:
        """Have `replica` answer. Gives back its refusal where it has no room; Gone if it said nothing at all."""
        target = f"{exchange.path}?{exchange.query}" if exchange.query else exchange.path
        replica.work += work
        replica.open += 1
        try:
            async with replica.ask(exchange.method, target, exchange.headers.items(), exchange.body) as (
                answer,
                reader,
            ):
                if answer.status == 503:
                    while not answer.is_whole:
                        await replica.read(answer, reader)
                    return _whole(answer)
                await self._pass_on(exchange, replica, answer, reader)
                replica.answered += 1
                return None
        finally:
            replica.work -= work
            replica.open -= 1

    async def _pass_on(
        self, exchange: Exchange, replica: Replica, answer: Answer, reader: asyncio.StreamReader
    ) -> None:
        """A short answer at once when it is whole; a stream as it comes."""
        if answer.headers.get(b"content-type", b"").startswith(_STREAM):
            exchange.start(_whole(answer))
            await self._stream(exchange, replica, answer, reader)
            return
        if exchange.method != "HEAD":
            while not answer.is_whole:
                await replica.read(answer, reader)
        exchange.respond(_whole(answer))

    async def _stream(self, exchange: Exchange, replica: Replica, answer: Answer, reader: asyncio.StreamReader) -> None:
        """What comes after the head was given; where it breaks off, that is the last event."""
        try:
            exchange.write(answer.take())
            while not answer.is_whole:
                await replica.read(answer, reader)
                exchange.write(answer.take())
        except Gone as error:
            self._lost(replica, str(error))
            said = HttpError(500, "the server that wrote this ended").content()
            exchange.write(_ERROR_EVENT % orjson.dumps(said))
        exchange.finish()

    # ---- the servers

    def follow(self, addresses: Iterable[str]) -> None:
        """Route to the servers at these addresses from now on; requests that others have are theirs to finish."""
        known = {replica.name: replica for replica in self.replicas}
        now = {replica.name: replica for replica in map(Replica, addresses)}
        for name in known.keys() - now.keys():
            self.affinity.forget(name)
            self.events.info("server removed", server=name)
        self.replicas = tuple(known.get(name, replica) for name, replica in now.items())

    def _lost(self, replica: Replica, reason: str) -> None:
        replica.failed += 1
        if replica.is_ready:
            replica.is_ready = False
            self.affinity.forget(replica.name)
            self.events.warning("server lost", server=replica.name, reason=reason)

    async def watch(self) -> None:
        """Keep looking at which servers are ready."""
        while True:
            await asyncio.gather(*(self._look_at(replica) for replica in self.replicas))
            await asyncio.sleep(CHECK_SECONDS)

    async def _look_at(self, replica: Replica) -> None:
        ready = await replica.check(CHECK_SECONDS)
        if ready and not replica.is_ready:
            self.events.info("server ready", server=replica.name)
        elif replica.is_ready and not ready:
            self._lost(replica, "it does not say that it is ready")
        replica.is_ready = ready
        replica.was_ready = replica.was_ready or ready

    async def finish(self, seconds: float) -> None:
        """Wait for open requests, at most so long, then end them."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _metrics(self) -> bytes:
        return ("\n".join(self._lines()) + "\n").encode("utf-8")

    def _lines(self) -> Iterator[str]:
        for metric, kind, text, of in (
            ("ready", "gauge", "Whether the server is ready.", lambda one: int(one.is_ready)),
            ("open_requests", "gauge", "Requests that the server has not answered yet.", lambda one: one.open),
            ("open_tokens", "gauge", "Tokens that these may cost, roughly.", lambda one: one.work),
            ("answers_total", "counter", "Answers of the server that were passed on.", lambda one: one.answered),
            ("failures_total", "counter", "Times that the server was not there.", lambda one: one.failed),
        ):
            yield f"# HELP fastserve_router_{metric} {text}"
            yield f"# TYPE fastserve_router_{metric} {kind}"
            for replica in self.replicas:
                yield f'fastserve_router_{metric}{{server="{replica.name}"}} {of(replica)}'


def _end(task: asyncio.Task[None]) -> None:
    task.cancel()


def _content(exchange: Exchange) -> dict[str, Any]:
    """The body as an object; empty where it is none, which the server will say."""
    if exchange.path in OPENAI_PATHS:
        with contextlib.suppress(orjson.JSONDecodeError):
            content = orjson.loads(exchange.body)
            if isinstance(content, dict):
                return content
    return {}


def _whole(answer: Answer) -> Reply:
    headers = tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in answer.headers.items()
        if name not in _DROPPED and name != b"x-request-id"
    )
    kind = answer.headers.get(b"content-type", JSON.encode()).decode("latin-1")
    streams = kind.startswith(_STREAM.decode())
    return Reply(answer.status, b"" if streams else answer.take(), kind, headers)
