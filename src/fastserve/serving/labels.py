"""A model that labels texts, with its queue: the forms of KServe v1 and of the Open Inference Protocol v2."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.serving import kserve_v1, oip, parity
from fastserve.serving.batcher import Batch, Batcher, Entry, Overloaded
from fastserve.serving.board import Row
from fastserve.serving.deployment import Ask, Place, Verb, version_of
from fastserve.serving.messages import Exchange, HttpError, Reply
from fastserve.serving.model import ServedModel
from fastserve.serving.options import ServeOptions
from fastserve.serving.runner import Cost, Runner, measure
from fastserve.types import FloatArray

_MEASURE_TEXTS = ["a text to measure with, as long as many are", "用来测量速度的一句话，和多数评论差不多长"]
_LIGHT_SECONDS = 0.005  # most time that a batch of a light model keeps the event loop
_HEAVY_SECONDS = 0.5  # time of a batch of a heavy model, for which a newcomer waits
_PADDING = 4  # how far the longest text of a batch may be above the mean


class LabelDeployment:
    """One version of a classifier, ready to answer. Belongs to the event loop that made it."""

    def __init__(self, folder: Path, model: ServedModel, runner: Runner, row: Row, options: ServeOptions) -> None:
        self.folder, self.model, self.runner, self.row, self.options = folder, model, runner, row, options
        self.version = version_of(folder)
        self.names: Sequence[str] = ()
        self.verbs: Mapping[str, Verb] = {"predict": self._predict, "infer": self._infer}
        self._max_length = model.max_length
        runner.on_batch = self._count

    # ---- what it answers

    def _predict(self, exchange: Exchange, name: str) -> None:
        texts = kserve_v1.read_request(exchange.body, self.options.max_texts)
        self._answer(exchange, texts, functools.partial(kserve_v1.write_reply, self.model))

    def _infer(self, exchange: Exchange, name: str) -> None:
        length = exchange.headers.get(oip.LENGTH_HEADER)
        request = oip.read_request(exchange.body, length, name, self.options.max_texts)
        write = functools.partial(oip.write_reply, request, name, self.version, self.model)
        self._answer(exchange, request.texts, write)

    def _count(self, batch: Batch, seconds: float) -> None:
        row = self.row
        row.add("batches")
        row.add("texts", len(batch))
        row.add("tokens", batch.tokens)
        row.add("compute_nanoseconds", int(seconds * 1e9))

    def _answer(self, exchange: Exchange, texts: list[str], write: Callable[[FloatArray], Reply]) -> None:
        """Queue `texts`; when their scores are there, `write` makes the reply. Raises HttpError where refused."""
        longest = self._max_length
        lengths = [min(len(text) + 1, longest) for text in texts]  # a token is at least a character
        if max(map(len, texts)) > self.options.max_characters:
            raise HttpError(413, f"a text is longer than {self.options.max_characters} characters")

        def done(entry: Entry) -> None:
            if entry.scores is None:
                exchange.respond(HttpError(500, "the model failed on this request").reply())
            else:
                exchange.respond(write(entry.scores))

        entry = Entry(texts, lengths, done)
        try:
            self.runner.submit(entry)
        except Overloaded as overload:
            raise HttpError(503, f"overloaded: {overload}", retry_after=overload.retry_after) from None

        def leave() -> None:
            self.row.add("cancelled")
            self.runner.cancel(entry)

        exchange.on_leave = leave

    # ---- how it is

    def about(self, name: str, refused: Mapping[str, str] | None) -> dict[str, Any]:
        """What `GET /v2/models/{name}` says."""
        further: dict[str, Any] = {"max_length": self.model.max_length, "runtime": self.model.runtime}
        return oip.metadata(name, self.version, self.model, further | ({"refused": refused} if refused else {}))

    def traits(self) -> dict[str, Any]:
        """For the log."""
        return {"runtime": self.model.runtime, "inline": self.runner.inline}

    def card(self) -> dict[str, Any]:
        """What the list of models says of it beyond its name."""
        return {}

    def set_gauges(self) -> None:
        """Put what waits on the board."""
        self.row["waiting"] = self.runner.batcher.waiting
        self.row["waiting_tokens"] = self.runner.batcher.waiting_tokens

    def stalled_seconds(self, now: float) -> float:
        """For how long it has had work without finishing any."""
        return self.runner.stalled_seconds(now)

    def is_ready(self, now: float, limit: float) -> bool:
        return self.stalled_seconds(now) < limit

    async def faults(self, ask: Ask) -> list[str]:
        """Where its answers are not those of the evaluation."""
        return await parity.compare(self.model, ask, self.options)

    async def close(self) -> None:
        """End at once."""
        self.runner.close()

    async def retire(self) -> None:
        """Finish what was accepted, then let the model go."""
        await self.runner.drained()
        self.runner.close()


async def deploy_labels(load: Callable[[Path], ServedModel], folder: Path, place: Place) -> LabelDeployment:
    """Load `folder` in a thread, measure it, and give it a queue that suits its cost."""
    loop = asyncio.get_running_loop()
    model = await loop.run_in_executor(None, load, folder)
    texts = [kept.text for kept in model.parity] or _MEASURE_TEXTS
    cost = await loop.run_in_executor(None, measure, model, texts)
    mean_length = sum(min(len(text) + 1, model.max_length) for text in texts) / len(texts)
    runner = Runner(model, make_batcher(model, cost, mean_length, place.options), inline=cost.is_light)
    runner.on_error = lambda error: place.events.defect("model failed", error, folder=folder)
    return LabelDeployment(folder, model, runner, place.row, place.options)


def make_batcher(model: ServedModel, cost: Cost, mean_length: float, options: ServeOptions) -> Batcher:
    """A queue whose batches take some milliseconds of a light model, or a fraction of a second of a heavy one.

    Such a batch holds whatever queued: a runtime sorts it by length and pads little, which gains more than smaller
    batches in the order of arrival do. mean_length: tokens of a usual text; an unusually long one counts its padding.
    """
    most = max(1, int((_LIGHT_SECONDS if cost.is_light else _HEAVY_SECONDS) / cost.per_text))
    if options.batch_tokens != "auto":
        return Batcher(options.batch_tokens, options.max_queue_requests, options.max_queue_tokens)
    budget = max(model.max_length, int(_PADDING * most * mean_length))
    return Batcher(budget, options.max_queue_requests, options.max_queue_tokens, most)
