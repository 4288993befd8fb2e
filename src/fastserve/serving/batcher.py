"""Which requests a model computes together. Decisions only: no clock, no event loop, no tensors, no HTTP.

The rule is that of text-embeddings-inference: one queue a model, a budget of tokens, and no timer. Whatever queued
while the model was busy is the next batch, so a lone request never waits and a crowd shares the cost.

A request may hold several texts. When they do not fit in one batch, the rest goes to the back of the queue, so that a
request with a thousand texts does not hold up the ones behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastserve.types import FloatArray

_NOTHING: Mapping[int, BaseException] = {}
State = Literal["waiting", "running", "result", "error", "cancelled"]


class Overloaded(Exception):
    """The queue is full. `retry_after`: whole seconds until there should be room, from the measured rate."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Entry:
    """One accepted request: its texts, and what becomes of them.

    lengths: tokens of each text as far as known before encoding. Ends in exactly one of the states result (scores is
    float32 (texts, C)), error, cancelled; `done` is called once at that moment, except after a cancellation, where
    nobody listens any more.
    """

    __slots__ = ("done", "error", "lengths", "next_row", "pending", "scores", "state", "texts", "tokens")

    def __init__(self, texts: Sequence[str], lengths: Sequence[int], done: Callable[[Entry], None]) -> None:
        self.texts, self.lengths, self.done = texts, lengths, done
        self.tokens = sum(lengths)
        self.next_row = 0
        self.pending = len(texts)
        self.state: State = "waiting"
        self.scores: FloatArray | None = None
        self.error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("result", "error", "cancelled")


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts computed at once, shortest first. origins[i] is the entry and the row in it that texts[i] came from."""

    texts: list[str]
    origins: list[tuple[Entry, int]]
    tokens: int

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(slots=True)
class Counts:
    """How requests ended, since the start. accepted = results + errors + cancelled + those in the batcher."""

    accepted: int = 0
    results: int = 0
    errors: int = 0
    cancelled: int = 0
    refused: int = 0
    batches: int = 0
    texts: int = 0


class Batcher:
    """The queue of one model.

    budget: most padded tokens of a batch (longest x texts). max_texts: most texts of a batch. max_requests, max_tokens:
    what may wait; one request alone is always taken, however big, so that it is not refused for ever.
    """

    def __init__(self, budget: int, max_requests: int, max_tokens: int, max_texts: int = 1 << 30) -> None:
        self.budget, self.max_requests, self.max_tokens, self.max_texts = budget, max_requests, max_tokens, max_texts
        self.counts = Counts()
        self.tokens_per_second = 0.0
        self._queue: deque[Entry] = deque()
        self._waiting_requests = 0
        self._waiting_tokens = 0
        self._running = 0

    @property
    def waiting(self) -> int:
        """Requests of which some texts have not begun."""
        return self._waiting_requests

    @property
    def waiting_tokens(self) -> int:
        return self._waiting_tokens

    @property
    def has_work(self) -> bool:
        """Whether any accepted request has not ended."""
        return self._waiting_requests > 0 or self._running > 0

    def submit(self, entry: Entry) -> None:
        """Accept `entry`, or raise Overloaded."""
        if self._waiting_requests and (
            self._waiting_requests >= self.max_requests or self._waiting_tokens + entry.tokens > self.max_tokens
        ):
            self.counts.refused += 1
            raise Overloaded(
                f"{self._waiting_requests} requests with {self._waiting_tokens} tokens are waiting already",
                self.retry_after(),
            )
        self.counts.accepted += 1
        self._waiting_requests += 1
        self._waiting_tokens += entry.tokens
        self._queue.append(entry)

    def retry_after(self) -> int:
        """Seconds until what waits now should be done, from 1 to 60."""
        if self.tokens_per_second <= 0:
            return 1
        return min(60, max(1, math.ceil(self._waiting_tokens / self.tokens_per_second)))

    def cancel(self, entry: Entry) -> None:
        """The client left: texts that have not begun are dropped, and the rest is computed for nobody."""
        if entry.is_over:
            return
        if entry.next_row < len(entry.texts):
            self._leave_queue(entry)
        self._end(entry, "cancelled")

    def next_batch(self) -> Batch | None:
        """Take what waits, first come first served up to the budget, and sort it by length; None: nothing waits."""
        picked: list[tuple[int, Entry, int]] = []
        longest = 0
        while self._queue:
            entry = self._queue[0]
            begun = entry.next_row
            longest = self._take_rows(entry, picked, longest)
            if entry.next_row == begun:
                break  # no room: it stays the first
            self._queue.popleft()
            if entry.next_row < len(entry.texts):
                self._queue.append(entry)
                break
        if not picked:
            return None
        picked.sort(key=lambda row: row[0])
        self.counts.batches += 1
        return Batch(
            [entry.texts[row] for _, entry, row in picked],
            [(entry, row) for _, entry, row in picked],
            longest * len(picked),
        )

    def _take_rows(self, entry: Entry, picked: list[tuple[int, Entry, int]], longest: int) -> int:
        """Add rows of `entry` to `picked` while they fit; the length of the longest picked row."""
        row, lengths = entry.next_row, entry.lengths
        while row < len(lengths):
            length = lengths[row]
            new_longest = max(length, longest)
            if picked and (len(picked) >= self.max_texts or new_longest * (len(picked) + 1) > self.budget):
                break
            longest = new_longest
            picked.append((length, entry, row))
            self._waiting_tokens -= length
            row += 1
        self._begin(entry, row)
        return longest

    def _begin(self, entry: Entry, next_row: int) -> None:
        if next_row == entry.next_row:
            return
        if entry.state == "waiting":
            entry.state = "running"
            self._running += 1
        entry.next_row = next_row
        if next_row == len(entry.texts):
            self._waiting_requests -= 1

    def finish(
        self, batch: Batch, scores: FloatArray, seconds: float, failed: Mapping[int, BaseException] = _NOTHING
    ) -> None:
        """`batch` was computed in `seconds`. scores: float32 (texts of the batch, C). failed: what went wrong with
        single texts, whose requests end in that error. Requests that are whole end in their result."""
        self._measure(batch.tokens, seconds)
        self.counts.texts += len(batch)
        for index, (entry, row) in enumerate(batch.origins):
            if entry.is_over:
                continue
            if index in failed:
                self._drop(entry, failed[index])
                continue
            if len(entry.texts) == 1:
                entry.scores = scores[index : index + 1]
            else:
                if entry.scores is None:
                    entry.scores = np.empty((len(entry.texts), scores.shape[1]), np.float32)
                entry.scores[row] = scores[index]
            entry.pending -= 1
            if not entry.pending:
                self._end(entry, "result")

    def fail_all(self, error: BaseException) -> None:
        """The model is gone: everything that waits ends in `error`."""
        for entry in tuple(self._queue):
            if not entry.is_over:
                self._drop(entry, error)
        self._queue.clear()

    def _drop(self, entry: Entry, error: BaseException) -> None:
        if entry.next_row < len(entry.texts):
            self._leave_queue(entry)
        entry.error, entry.scores = error, None
        self._end(entry, "error")

    def _leave_queue(self, entry: Entry) -> None:
        self._waiting_requests -= 1
        self._waiting_tokens -= sum(entry.lengths[entry.next_row :])
        self._queue.remove(entry)

    def _end(self, entry: Entry, state: Literal["result", "error", "cancelled"]) -> None:
        if entry.state == "running":
            self._running -= 1
        entry.state = state
        counts = self.counts
        if state == "result":
            counts.results += 1
        elif state == "error":
            counts.errors += 1
        else:
            counts.cancelled += 1
            return
        entry.done(entry)

    def _measure(self, tokens: int, seconds: float) -> None:
        rate = tokens / max(seconds, 1e-9)
        self.tokens_per_second += 0.1 * (rate - self.tokens_per_second) if self.tokens_per_second else rate
