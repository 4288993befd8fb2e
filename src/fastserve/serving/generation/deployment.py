"""One version of a model that writes: its tokenizer in the worker, its engine in a process, and the verbs between."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastserve import device
from fastserve.serving.board import Row
from fastserve.serving.deployment import Ask, Place, Verb, version_of
from fastserve.serving.generation import parity
from fastserve.serving.generation.adapters import find_adapters
from fastserve.serving.generation.asking import Asked, Asking
from fastserve.serving.generation.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    read_part,
)
from fastserve.serving.generation.client import EngineClient
from fastserve.serving.generation.figures import Figures
from fastserve.serving.generation.forms import Answer, ChatForm, CompletionForm, Form, TokenWords
from fastserve.serving.generation.source import BUNDLES, WriterSource, WriterText, check_source
from fastserve.serving.generation.turn import Turn
from fastserve.serving.generation.wire import EngineFacts, EngineOrder
from fastserve.serving.messages import Exchange, HttpError, json_reply
from fastserve.serving.options import ServeOptions

Made = TypeVar("Made")


class WritingDeployment:
    """Belongs to the event loop that made it. Texts become ids in a thread: a long one delays nobody's tokens."""

    def __init__(
        self, folder: Path, text: WriterText, client: EngineClient, figures: Figures, facts: EngineFacts, place: Place
    ) -> None:
        self.folder, self.text, self.client, self.figures, self.facts = folder, text, client, figures, facts
        self.row: Row = place.row
        self.options, self.events = place.options, place.events
        self.version = version_of(folder)
        self.names: Sequence[str] = tuple(client.order.adapters)
        self.verbs: Mapping[str, Verb] = {
            "completions": self._complete,
            "chat": self._chat,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
        }
        self.asking = Asking(
            text.pipeline,
            longest=facts.longest,
            vocabulary=facts.vocabulary,
            most=self.options.max_choices,
            new_id=client.next_id,
        )
        self._words = TokenWords(text.pipeline.tokenizer.bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._tasks: set[asyncio.Task[None]] = set()
        self._since = int(time.time())

    # ---- what it answers

    def _complete(self, exchange: Exchange, name: str) -> None:
        body = CompletionBody.read(exchange.content)
        form = CompletionForm(self._words, body.logprobs)
        self._write(exchange, name, body, form, lambda: self.asking.completion(body, exchange.key, self._adapter(name)))

    def _chat(self, exchange: Exchange, name: str) -> None:
        body = ChatBody.read(exchange.content)
        form = ChatForm(self._words, bool(body.logprobs))
        self._write(exchange, name, body, form, lambda: self.asking.chat(body, exchange.key, self._adapter(name)))

    def _adapter(self, name: str) -> str | None:
        """By the name that was asked for, where it is one of an adapter."""
        return name if name in self.names else None

    def _write(
        self, exchange: Exchange, name: str, body: CompletionBody | ChatBody, form: Form, ask: Callable[[], Asked]
    ) -> None:
        tells_usage, streams = body.includes_usage, body.streams

        def begin(asked: Asked) -> None:
            kind = "chatcmpl" if isinstance(form, ChatForm) else "cmpl"
            head = {"id": f"{kind}-{os.urandom(12).hex()}", "created": int(time.time()), "model": name}
            count = sum(order.sampling.n for order in asked.orders)
            prompt_tokens = sum(len(order.prompt) for order in asked.orders)
            answer = Answer(form, head, prompt_tokens, count, asked.new_reader)
            Turn(
                exchange, self.client, answer, asked.orders, self.figures, streams=streams, tells_usage=tells_usage
            ).begin()

        self._prepare(exchange, ask, begin)

    def _tokenize(self, exchange: Exchange, name: str) -> None:
        body: TokenizeBody = read_part(TokenizeBody, exchange.content)

        def answer(ids: list[int]) -> None:
            strings = [self._words.text(token) for token in ids] if body.return_token_strs else None
            content = {"count": len(ids), "max_model_len": self.facts.longest, "tokens": ids, "token_strs": strings}
            exchange.respond(json_reply(content))

        self._prepare(exchange, lambda: self.asking.tokens(body), answer)

    def _detokenize(self, exchange: Exchange, name: str) -> None:
        body: DetokenizeBody = read_part(DetokenizeBody, exchange.content)
        text = self.text.pipeline.tokenizer.decode(body.tokens, special=True)
        exchange.respond(json_reply({"prompt": text}))

    def _prepare(self, exchange: Exchange, make: Callable[[], Made], use: Callable[[Made], None]) -> None:
        """Do `make` in the thread, then `use` what it gave, if anybody still waits for it."""
        task = asyncio.get_running_loop().create_task(self._prepared(exchange, make, use))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepared(self, exchange: Exchange, make: Callable[[], Made], use: Callable[[Made], None]) -> None:
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._thread, make)
            if exchange.is_open:
                use(made)
        except HttpError as error:
            exchange.respond(error.reply(exchange.path))
        except Exception as error:  # a defect must not leave a client without an answer
            self.events.defect("request failed", error, path=exchange.path)
            exchange.respond(HttpError(500, "internal error; the server's log says more").reply(exchange.path))

    # ---- how it is

    def about(self, name: str, refused: Mapping[str, str] | None) -> dict[str, Any]:
        facts = self.facts
        further: dict[str, Any] = {
            "max_length": facts.longest,
            "precision": facts.precision,
            "kind": self.text.pipeline.kind,
            "tensor_parallel": self.options.writing.tensor_parallel,
            "weight_bytes": facts.weight_bytes,
        }
        return {
            "name": name,
            "versions": [self.version],
            "platform": "fastserve_engine",
            "inputs": [],
            "outputs": [],
            "parameters": further | ({"refused": refused} if refused else {}),
        }

    def traits(self) -> dict[str, Any]:
        return {"engine": "fastserve", "precision": self.facts.precision, "longest": self.facts.longest}

    def card(self) -> dict[str, Any]:
        return {"created": self._since, "max_model_len": self.facts.longest}

    def set_gauges(self) -> None:
        """The engine tells its numbers several times a second."""
        self.row["writes"] = 1
        self.row["engine_up"] = int(self.client.is_up)

    def stalled_seconds(self, now: float) -> float:
        """Never: an engine that hangs is replaced without its worker."""
        return 0.0

    def is_ready(self, now: float, limit: float) -> bool:
        return self.client.is_up and self.client.silent_seconds < limit

    async def faults(self, ask: Ask) -> list[str]:
        judged = await parity.judge(self.text, self.facts, self.client.refer, ask)
        self.figures.alone = judged.alone
        return judged.faults

    async def retire(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.drained()
        await self.close()

    async def close(self) -> None:
        await self.client.close()
        self._thread.shutdown(wait=False)


async def deploy_writer(folder: Path, place: Place, source: str = BUNDLES) -> WritingDeployment:
    """Start the engine of `folder` and read its tokenizer. source: the WriterSource as module:Class."""
    from fastserve.plugins import import_object

    options = place.options
    writers: WriterSource = import_object(source)()
    order = EngineOrder(
        folder=str(folder),
        adapters=find_adapters(options.adapters),
        source=source,
        options=options.writing,
        threads=engine_threads(options),
    )
    figures = Figures(lambda: deployment.row)
    client = EngineClient(
        order, place.events, figures, hang_seconds=options.hang_seconds, start_seconds=options.start_seconds
    )
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(None, writers.text, folder)
    try:
        facts = await client.start()
        text = await reading
        check_source(text, facts, folder)
    except BaseException:
        await client.close()
        raise
    deployment = WritingDeployment(folder, text, client, figures, facts, place)
    return deployment


def engine_threads(options: ServeOptions) -> int:
    """The cores of this machine, shared by the workers."""
    if options.engine_threads == "auto":
        return max(1, device.cores() // options.workers)
    return options.engine_threads
