"""The network's part of a step: moves in the cache, then one forward pass over the tokens of several texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastserve.generation.adapters import Adapters
from fastserve.generation.network import Decodes
from fastserve.generation.slots import HostRow, SlotCache
from fastserve.generation.step import Move, Place, SwapOut
from fastserve.generation.step_attention import Chunk, StepAttention


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one text that are read. wanted: of how many of the last of them the logits are needed; adapter: of the
    text."""

    slot: int
    start: int
    ids: Sequence[int]
    wanted: int
    adapter: str | None = None

    @property
    def chunk(self) -> Chunk:
        return Chunk(self.slot, self.start, len(self.ids))


class Runner:
    """network: in evaluation mode; slots: as the scheduler numbers them; adapters: that the network was made with."""

    def __init__(self, network: Decodes, slots: int, adapters: Adapters | None = None) -> None:
        self.network, self.adapters = network, adapters
        self.device = device_of(network)
        self.cache = SlotCache(network.layers, slots, network.longest, self.device)
        self._head = network.head
        self._away: dict[int, HostRow] = {}
        """Caches in host memory, by job."""

    @torch.inference_mode()
    def move(self, moves: Iterable[Move]) -> None:
        """What the scheduler wants moved before a step, in this order."""
        for move in moves:
            if isinstance(move, Place):
                self._away.pop(move.job.id, None)
                self.cache.copy(move.slot if move.source is None else move.source, move.slot, move.copied)
            elif isinstance(move, SwapOut):
                self._away[move.job.id] = self.cache.swap_out(move.slot, move.tokens)
            else:
                self.cache.swap_in(move.slot, self._away.pop(move.job.id))

    def forget(self, job: int) -> None:
        """A job that ended needs nothing in host memory."""
        self._away.pop(job, None)

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Forget what is in a slot, whose numbers may be none."""
        self.cache.clear(slot)

    @property
    def swapped(self) -> int:
        """Caches in host memory."""
        return len(self._away)

    @torch.inference_mode()
    def read(self, parts: Sequence[Part]) -> Tensor:
        """Logits (M, V): those that each part wants, end to end in the order of the parts."""
        singles = {part.slot: part for part in parts if len(part.ids) == 1}
        front = [singles[slot] for slot in self.cache.gather(list(singles))]
        order = front + [part for part in parts if len(part.ids) > 1]
        ids = torch.tensor([token for part in order for token in part.ids], device=self.device)
        chunks = [part.chunk for part in order]
        attention = StepAttention(self.cache, chunks[: len(front)], chunks[len(front) :])
        if self.adapters is not None:
            self.adapters.arrange([part.adapter for part in order for _ in part.ids], self.device)
        hidden = self.network.hidden(ids, attention)
        for part in parts:
            self.cache.keep(part.slot, part.start + len(part.ids))
        return self._logits(hidden, parts, order)

    def _logits(self, hidden: Tensor, parts: Sequence[Part], order: Sequence[Part]) -> Tensor:
        ends = dict(zip((part.slot for part in order), accumulate(len(part.ids) for part in order), strict=True))
        places = [place for part in parts for place in range(ends[part.slot] - part.wanted, ends[part.slot])]
        if places != list(range(len(hidden))):
            hidden = hidden[torch.tensor(places, dtype=torch.int64, device=self.device)]
        return self._head(hidden)


def device_of(network: Any) -> torch.device:
    """Where a network computes."""
    found: torch.device | None = getattr(network, "device", None)
    return found or next(iter(network.head.parameters())).device
