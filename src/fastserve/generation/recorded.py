"""Steps in which each text goes on by one token, recorded once and then replayed: CUDA graphs.

Launching the few hundred small operations of such a step takes longer than they do. A graph launches them at once, but
knows no other tensors than it was recorded with; so its inputs are copied into tensors that stay, rows are filled up to
a size that was recorded, and nothing in it depends on how long the texts are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastserve.generation.key_values import Chunk
from fastserve.generation.network import Decodes
from fastserve.generation.paged_attention import Layout, PagedAttention, Parts, lay_out
from fastserve.generation.paged_cache import PagedCache
from fastserve.generation.sending import send

BUCKETS: tuple[int, ...] = (1, 2, 4, 8, *range(16, 257, 8))
"""Rows of the steps that are recorded."""
Compute = Callable[[], Tensor]
Record = Callable[[Compute], Compute]
"""From what computes to what computes the same again, from the same tensors into the same tensors."""


class CudaGraphs:
    """A `Record`. All recordings share their memory: only the result of the last one that was replayed is valid."""

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        with torch.cuda.device(self.place):
            compute()  # on the stream that all else is on, since the cache may take its memory here
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(current)
            with torch.cuda.stream(aside):  # libraries choose their kernels, which must not be recorded
                compute()
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                found = compute()

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay


@dataclass(slots=True)
class Recording:
    """inputs: int32, ids and then `Parts`; moved: of the cache, when this was recorded."""

    inputs: Tensor
    replay: Compute
    moved: int


class Recorded:
    """network: whose steps are the same operations whatever the tokens are."""

    def __init__(self, network: Decodes, cache: PagedCache, record: Record) -> None:
        self.network, self.cache, self.record = network, cache, record
        self._head = network.head
        self._recordings: dict[int, Recording] = {}

    @property
    def sizes(self) -> list[int]:
        """Of the steps that are recorded by now."""
        return sorted(self._recordings)

    def takes(self, rows: int) -> bool:
        return rows <= BUCKETS[-1]

    def __call__(self, ids: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """The next token of each row to logits (N, V), which are valid until the next call."""
        for chunk in chunks:
            self.cache.reserve(chunk.slot, chunk.stop)
        logits = self._replay(ids, chunks, _size(len(chunks)))
        return logits[: len(chunks)]

    @torch.inference_mode()
    def warm(self, rows: int) -> None:
        """Record all that steps of at most so many rows need."""
        for size in BUCKETS[: bisect_left(BUCKETS, rows) + 1]:
            self._replay([], [], size)

    def _replay(self, ids: Sequence[int], chunks: Sequence[Chunk], size: int) -> Tensor:
        spare = size - len(chunks)
        laid = lay_out(self.cache.table, chunks, width=self.cache.row, spare=spare)
        told = torch.from_numpy(np.concatenate([np.array([*ids, *[0] * spare], np.int32), laid]))
        told = send(told, self.cache.device)
        found = self._recordings.get(size)
        if found is None or found.moved != self.cache.moved:
            inputs = told.clone()
            found = Recording(inputs, self.record(lambda: self._compute(inputs, size)), self.cache.moved)
            self._recordings[size] = found
        found.inputs.copy_(told)
        return found.replay()

    def _compute(self, inputs: Tensor, size: int) -> Tensor:
        parts = Parts.of(inputs[size:], size, size, self.cache.row)
        attention = PagedAttention(self.cache, Layout(parts, 1, self.cache.longest))
        return self._head(self.network.hidden(inputs[:size].long(), attention))


def _size(rows: int) -> int:
    return BUCKETS[bisect_left(BUCKETS, rows)]
