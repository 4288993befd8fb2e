"""A loaded version of a model with its queue, and the slot that holds the version in charge under a served name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.serving.batcher import Batch, Batcher, Entry, Overloaded
from fastserve.serving.board import Row
from fastserve.serving.events import Events
from fastserve.serving.messages import Exchange, HttpError, Reply
from fastserve.serving.model import ModelSource, ServedModel
from fastserve.serving.options import ServeOptions
from fastserve.serving.runner import Cost, Runner, measure
from fastserve.types import FloatArray

_MEASURE_TEXTS = ["a text to measure with, as long as many are", "用来测量速度的一句话，和多数评论差不多长"]
_LIGHT_SECONDS = 0.005  # most time that a batch of a light model keeps the event loop
_HEAVY_SECONDS = 0.5  # time of a batch of a heavy model, for which a newcomer waits
_PADDING = 4  # how far the longest text of a batch may be above the mean


class Deployment:
    """One version of a model, ready to answer. Belongs to the event loop that made it."""

    def __init__(self, folder: Path, model: ServedModel, runner: Runner, row: Row, options: ServeOptions) -> None:
        self.folder, self.model, self.runner, self.row = folder, model, runner, row
        self.version = folder.name if folder.name.isdecimal() else "1"
        self.metadata: dict[str, Any] = {}
        self._max_length, self._max_characters = model.max_length, options.max_characters
        runner.on_batch = self._count

    def _count(self, batch: Batch, seconds: float) -> None:
        row = self.row
        row.add("batches")
        row.add("texts", len(batch))
        row.add("tokens", batch.tokens)
        row.add("compute_nanoseconds", int(seconds * 1e9))

    def answer(self, exchange: Exchange, texts: list[str], write: Callable[[FloatArray], Reply]) -> None:
        """Queue `texts`; when their scores are there, `write` makes the reply. Raises HttpError where refused."""
        longest = self._max_length
        lengths = [min(len(text) + 1, longest) for text in texts]  # a token is at least a character
        if max(map(len, texts)) > self._max_characters:
            raise HttpError(413, f"a text is longer than {self._max_characters} characters")

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

    async def retire(self) -> None:
        """Finish what was accepted, then let the model go."""
        await self.runner.drained()
        self.runner.close()


@dataclass(slots=True)
class Slot:
    """A served name: what was asked for, who is in charge, and which version was last refused, with the reason."""

    name: str
    reference: str
    current: Deployment | None = None
    refused: tuple[Path, str] | None = None


async def deploy(source: ModelSource, folder: Path, row: Row, options: ServeOptions, events: Events) -> Deployment:
    """Load `folder` in a thread, measure it, and give it a queue that suits its cost."""
    loop = asyncio.get_running_loop()
    model = await loop.run_in_executor(None, source.load, folder)
    texts = [kept.text for kept in model.parity] or _MEASURE_TEXTS
    cost = await loop.run_in_executor(None, measure, model, texts)
    mean_length = sum(min(len(text) + 1, model.max_length) for text in texts) / len(texts)
    runner = Runner(model, make_batcher(model, cost, mean_length, options), inline=cost.is_light)
    runner.on_error = lambda error: events.defect("model failed", error, folder=folder)
    return Deployment(folder, model, runner, row, options)


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
