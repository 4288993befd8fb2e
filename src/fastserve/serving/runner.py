"""Runs the batches of one model: on the event loop where a text costs microseconds, else in a thread.

Going through a thread costs about as much as a light model's whole answer, and a seventh of an encoder's of two
milliseconds; a heavy model on the event loop would keep health checks waiting. So the cost is measured first.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fastserve.serving.batcher import Batch, Batcher, Entry
from fastserve.serving.model import ServedModel
from fastserve.types import FloatArray

_INLINE_SECONDS = 0.0025  # a text that costs less is computed on the event loop, at most two of them in a turn
_TRIED_BATCHES = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured: seconds of one text alone, and of each text in the batch that is cheapest."""

    single: float
    per_text: float

    @property
    def is_light(self) -> bool:
        return self.single < _INLINE_SECONDS


def measure(model: ServedModel, texts: Sequence[str], *, seconds: float = 0.5) -> Cost:
    """Compute `texts` (at least one) in batches of several sizes for about `seconds`, and see which pays."""
    end = time.monotonic() + seconds
    costs: dict[int, float] = {}
    for size in _TRIED_BATCHES:
        if costs and 2 * size * min(costs.values()) > end - time.monotonic():
            break
        costs[size] = _cost(model, [texts[index % len(texts)] for index in range(size)], end)
    return Cost(costs[1], min(costs.values()))


def _cost(model: ServedModel, batch: list[str], end: float) -> float:
    """Seconds for each text of `batch`: the best of a few tries, the first of which may build something."""
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        model.scores(batch)
        best = min(best, (time.perf_counter() - start) / len(batch))
        if time.monotonic() > end:
            break
    return best


class Runner:
    """Feeds `batcher` to `model`. All methods belong to the thread of the event loop."""

    def __init__(self, model: ServedModel, batcher: Batcher, *, inline: bool) -> None:
        self.model, self.batcher, self.inline = model, batcher, inline
        self._executor = None if inline else ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.last_progress = time.monotonic()
        self.on_batch: Callable[[Batch, float], None] = lambda batch, seconds: None
        self.on_error: Callable[[Exception], None] = lambda error: None

    def submit(self, entry: Entry) -> None:
        """Accept `entry` or raise Overloaded. Everything that arrives before the loop turns is one batch."""
        if not self.batcher.has_work:
            self.last_progress = time.monotonic()
        self.batcher.submit(entry)
        if not self._scheduled:
            self._scheduled = True
            self._idle.clear()
            self._loop.call_soon(self._turn)

    def cancel(self, entry: Entry) -> None:
        self.batcher.cancel(entry)

    def stalled_seconds(self, now: float) -> float:
        """For how long there has been work and nothing was finished."""
        return now - self.last_progress if self.batcher.has_work else 0.0

    async def drained(self) -> None:
        """Wait until everything accepted has ended."""
        await self._idle.wait()

    def close(self) -> None:
        """Give the thread back; call it once drained."""
        self._closed = True
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def _turn(self) -> None:
        """Compute the next batch, and come back for what queued meanwhile."""
        batch = self.batcher.next_batch()
        if batch is None:
            self._scheduled = False
            self._idle.set()
        elif self._executor is None:
            self._settle(batch, _compute(self.model, batch.texts))
        else:
            future = self._executor.submit(_compute, self.model, batch.texts)
            future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._settle, batch, done.result()))

    def _settle(self, batch: Batch, outcome: _Outcome) -> None:
        self.last_progress = time.monotonic()
        self.on_batch(batch, outcome.seconds)
        for error in outcome.failed.values():
            self.on_error(error)
        self.batcher.finish(batch, outcome.scores, outcome.seconds, outcome.failed)
        self._loop.call_soon(self._turn)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """scores: float32 (texts, C), meaningless in the rows of `failed`; seconds: what it took."""

    scores: FloatArray
    failed: Mapping[int, Exception]
    seconds: float


def _compute(model: ServedModel, texts: list[str]) -> _Outcome:
    """The scores of `texts`. Where a batch fails, each text is tried alone, so that only the faulty one fails."""
    start = time.perf_counter()
    failed: dict[int, Exception] = {}
    try:
        scores = model.scores(texts)
    except Exception as error:  # whatever a model raises must not end the server
        scores = np.zeros((len(texts), len(model.labels)), np.float32)
        failed = {0: error} if len(texts) == 1 else _compute_apart(model, texts, scores)
    return _Outcome(scores, failed, time.perf_counter() - start)


def _compute_apart(model: ServedModel, texts: list[str], scores: FloatArray) -> dict[int, Exception]:
    failed: dict[int, Exception] = {}
    for row, text in enumerate(texts):
        try:
            scores[row] = model.scores([text])[0]
        except Exception as error:
            failed[row] = error
    return failed
