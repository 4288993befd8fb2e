"""The network's part of a step: moves in the cache, then one forward pass over the tokens of several texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fastserve.generation.adapters import Adapters
from fastserve.generation.cache import RowCache
from fastserve.generation.key_values import Chunk, HostRow
from fastserve.generation.memory import Budget, memory_of
from fastserve.generation.network import Decodes, device_of
from fastserve.generation.sending import send
from fastserve.generation.step import Move, Place, SwapOut


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
    """network: in evaluation mode; slots: as the scheduler numbers them; adapters: that the network was made with;
    books: the scheduler's, of what in the slots is of use, where there is one."""

    def __init__(
        self, network: Decodes, slots: int, adapters: Adapters | None = None, books: RowCache | None = None
    ) -> None:
        self.network, self.adapters = network, adapters
        self.device = device_of(network)
        budget = None if books is None else Budget(books.limits.blocks * books.limits.block_size, self._needed)
        self.cache, self.recorded = memory_of(network, slots, self.device, budget)
        self._books = books
        self._head = network.head
        self._away: dict[int, HostRow] = {}
        """Caches in host memory, by job."""
        self._moves: Sequence[Move] = ()
        """That are being done."""

    def _needed(self, slot: int) -> int:
        """Tokens of a slot that a job has or may take over; or a move, of what the scheduler has counted as free."""
        moved = [move.copied for move in self._moves if isinstance(move, Place) and move.source == slot]
        moved += [move.tokens for move in self._moves if isinstance(move, SwapOut) and move.slot == slot]
        held = self._books.rows[slot].blocks * self._books.limits.block_size if self._books else 0
        return max(held, *moved, 0)

    def warm(self, rows: int) -> None:
        """Do now what the first steps of at most so many rows would have to wait for."""
        if self.recorded is not None:
            self.recorded.warm(rows)

    @torch.inference_mode()
    def move(self, moves: Iterable[Move]) -> None:
        """What the scheduler wants moved before a step, in this order."""
        self._moves = tuple(moves)
        try:
            self._move()
        finally:
            self._moves = ()

    def _move(self) -> None:
        for move in self._moves:
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
        ids = [token for part in order for token in part.ids]
        wanted = self._wanted(parts, order, len(ids))
        if self.adapters is not None:
            self.adapters.arrange([part.adapter for part in order for _ in part.ids], self.device)
        if self.recorded is not None and self._is_plain(parts) and self.recorded.takes(len(parts)):
            logits = self.recorded(ids, [part.chunk for part in order])
            self._keep(parts)
            return logits if wanted is None else logits[wanted]
        chunks = [part.chunk for part in order]
        attention = self.cache.attention(chunks[: len(front)], chunks[len(front) :])
        hidden = self.network.hidden(send(torch.tensor(ids), self.device), attention)
        self._keep(parts)
        return self._head(hidden if wanted is None else hidden[wanted])

    @staticmethod
    def _is_plain(parts: Sequence[Part]) -> bool:
        """Whether each text goes on by one token, without an adapter."""
        return all(len(part.ids) == 1 and part.adapter is None for part in parts)

    def _keep(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.cache.keep(part.slot, part.start + len(part.ids))

    def _wanted(self, parts: Sequence[Part], order: Sequence[Part], tokens: int) -> Tensor | None:
        """int64 (M,): of which of the step's tokens the logits are wanted; None: of all, as they are."""
        ends = dict(zip((part.slot for part in order), accumulate(len(part.ids) for part in order), strict=True))
        places = [place for part in parts for place in range(ends[part.slot] - part.wanted, ends[part.slot])]
        if places == list(range(tokens)):
            return None
        return send(torch.tensor(places, dtype=torch.int64), self.device)
