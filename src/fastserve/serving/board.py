"""Numbers that all worker processes share: what they counted, and how much each API key has used.

One file without a name is mapped by every process. A worker writes its own row and any worker can add up all rows, so
`/metrics` is whole whoever answers it. A worker that dies leaves its counts
behind, and its successor goes on from them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

STATUSES: Final = (200, 400, 401, 404, 405, 408, 413, 415, 429, 431, 500, 503)
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
COUNTERS: Final = ("nanoseconds", "texts", "tokens", "batches", "compute_nanoseconds", "cancelled", "refused", "swaps")
GAUGES: Final = ("waiting", "waiting_tokens", "version", "ready", "connections", "accepting")
ENGINE_COUNTERS: Final = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "preemptions_total",
    "recomputed_tokens_total",
    "swapped_tokens_total",
    "speculated_tokens_total",
    "accepted_tokens_total",
    "steps_total",
)
"""Of a model that writes, as its engine counts them (the names of `EngineStats`)."""
ENGINE_GAUGES: Final = (
    "requests_running",
    "requests_waiting",
    "requests_paused",
    "requests_swapped",
    "cached_blocks",
    "blocks",
)
LEVELS: Final = 8
_WRITING_COUNTERS = ("finished_stop", "finished_length", "finished_error", "engine_restarts")
_WRITING_GAUGES = ("writes", "engine_up", "cache_usage_millionths", *(f"level_{level}" for level in range(LEVELS)))
_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Histogram:
    """Values in buckets; its fields are `NAME_le_BOUND` and `NAME_millionths`, their sum in millionths."""

    name: str
    bounds: tuple[float, ...]

    @cached_property
    def fields(self) -> tuple[str, ...]:
        return (*(f"{self.name}_le_{bound}" for bound in (*self.bounds, "inf")), f"{self.name}_millionths")


FIRST_TOKEN: Final = Histogram("first_token", _SECONDS)
NEXT_TOKEN: Final = Histogram("next_token", _SECONDS)
COMPLETION: Final = Histogram("completion", _SECONDS)
SLOWDOWN: Final = Histogram("slowdown", (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0))
_HISTOGRAMS = (FIRST_TOKEN, NEXT_TOKEN, COMPLETION, SLOWDOWN)
FIELDS: Final = (
    *map(str, STATUSES),
    *(f"le_{bound}" for bound in (*BUCKETS, "inf")),
    *COUNTERS,
    *GAUGES,
    *ENGINE_COUNTERS,
    *ENGINE_GAUGES,
    *_WRITING_COUNTERS,
    *_WRITING_GAUGES,
    *(field for histogram in _HISTOGRAMS for field in histogram.fields),
)
INDEX: Final = {name: position for position, name in enumerate(FIELDS)}
_STATUS_INDEX = {status: INDEX[str(status)] for status in STATUSES}
_FIRST_BUCKET = INDEX[f"le_{BUCKETS[0]}"]
_NANOSECONDS = INDEX["nanoseconds"]


class Row:
    """The numbers of one worker about one model (or, under the name "", about requests that reach no model)."""

    __slots__ = ("_values",)

    def __init__(self, values: memoryview) -> None:
        self._values = values

    def __getitem__(self, name: str) -> int:
        return int(self._values[INDEX[name]])

    def __setitem__(self, name: str, value: int) -> None:
        self._values[INDEX[name]] = value

    def add(self, name: str, amount: int = 1) -> None:
        self._values[INDEX[name]] += amount

    def count(self, status: int, seconds: float) -> None:
        """One answer."""
        values = self._values
        values[_STATUS_INDEX[status]] += 1
        values[_FIRST_BUCKET + bisect_left(BUCKETS, seconds)] += 1
        values[_NANOSECONDS] += int(seconds * 1e9)

    def observe(self, histogram: Histogram, value: float) -> None:
        """One value of a histogram."""
        fields = histogram.fields
        self.add(fields[bisect_left(histogram.bounds, value)])
        self.add(fields[-1], int(value * 1e6))


class Board:
    """All rows: of `workers` processes, each with one for "" and one for each of `models`; and a number for each key.

    descriptor: the file to map, from `make_file`; None keeps the numbers in this process alone.
    """

    def __init__(
        self, models: Sequence[str], *, workers: int = 1, keys: int = 0, descriptor: int | None = None
    ) -> None:
        self.models = ("", *models)
        self.workers = workers
        self._width = len(FIELDS)
        rows = workers * len(self.models) * self._width
        size = 8 * (1 + rows + max(keys, 1))
        if descriptor is None:
            memory: bytearray | mmap.mmap = bytearray(size)
        else:
            os.ftruncate(descriptor, size)
            memory = mmap.mmap(descriptor, size)
        values = memoryview(memory).cast("q")
        self._restarts, self._rows, self.keys = values[:1], values[1 : 1 + rows], values[1 + rows :]

    @staticmethod
    def make_file() -> int:
        """A descriptor that worker processes can inherit."""
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        os.set_inheritable(descriptor, True)
        return descriptor

    @property
    def restarts(self) -> int:
        """Workers that were replaced after a crash or a hang; only the supervisor counts."""
        return int(self._restarts[0])

    def count_restart(self) -> None:
        self._restarts[0] += 1

    def row(self, worker: int, model: str) -> Row:
        start = (worker * len(self.models) + self.models.index(model)) * self._width
        return Row(self._rows[start : start + self._width])

    def clear_gauges(self, worker: int) -> None:
        """A new process begins: what its predecessor had in hand is gone."""
        for model in self.models:
            row = self.row(worker, model)
            for name in (*GAUGES, *ENGINE_GAUGES, *_WRITING_GAUGES):
                row[name] = 0

    def has_most_connections(self, worker: int) -> bool:
        """Whether a worker that also accepts has fewer open connections than `worker`."""
        mine = self.row(worker, "")["connections"]
        others = (self.row(other, "") for other in range(self.workers) if other != worker)
        return any(row["accepting"] and row["connections"] < mine for row in others)

    def total(self, model: str, name: str) -> int:
        return sum(self.row(worker, model)[name] for worker in range(self.workers))
