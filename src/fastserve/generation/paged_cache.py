"""Keys and values of the texts that an engine writes, in pages that are taken as texts grow and given back as they end.

The pool of pages is one tensor for a layer's keys and one for its values, so that one call of a kernel attends to all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastserve.generation.key_values import Chunk, HostRow, Pair
from fastserve.generation.paged_attention import Layout, PagedAttention, PageKernel, Parts, lay_out
from fastserve.generation.pages import PageTable
from fastserve.generation.sending import send

PAGE = 256
"""Tokens of a page, as FlashAttention-2 asks."""
GROWTH = 1.5
"""Times what there is, by which the pool grows where it has to."""


class PagedCache:
    """A `KeyValues`. layers: of the network; slots: as the scheduler numbers them; longest: most tokens of a slot;
    kernel: what attends to pages; pages: to begin with; needed: of a slot, tokens that are still of use to somebody.

    A slot that nobody needs keeps its pages until they are asked for, since it may be gone on from. Only where all
    pages are needed does the pool grow, and its tensors move.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        longest: int,
        device: torch.device,
        kernel: PageKernel,
        *,
        pages: int,
        page: int = PAGE,
        needed: Callable[[int], int] | None = None,
    ) -> None:
        self.longest, self.device, self.kernel, self.needed = longest, device, kernel, needed
        self.row = -(-longest // page)
        """Pages of a slot, at most."""
        self.table = PageTable(slots, self.row, pages + 1, page)
        self.lengths = [0] * slots
        self.moved = 0
        """How often the tensors have moved."""
        self._layers: list[Pair | None] = [None] * layers

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self._parts())

    @property
    def capacity(self) -> int:
        return self.table.pages * self.table.size

    def room(self, tokens: int) -> int:
        return self.table.pages_of(tokens) * self.table.size

    def layer(self, number: int, key: Tensor, value: Tensor) -> Pair:
        """Keys and values (pages, size, K, D) of a layer, of the form and type of new ones (N, K, D)."""
        pair = self._layers[number]
        if pair is None:
            pair = self._empty(key), self._empty(value)
            self._layers[number] = pair
        return pair

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.table.pages, self.table.size, *like.shape[1:])

    def reserve(self, slot: int, tokens: int) -> None:
        """The slot will have so many tokens: make room."""
        if self.table.lacking(slot, tokens) > 0:
            self._find_pages(slot, tokens)
        self.table.grow(slot, tokens)

    def _find_pages(self, slot: int, tokens: int) -> None:
        """From slots that have more than anybody needs, or else new ones."""
        if self.needed is not None:
            for other in range(len(self.lengths)):
                needed = self.needed(other)
                self.table.shrink(other, needed)
                self.lengths[other] = min(self.lengths[other], needed)
        lacking = self.table.lacking(slot, tokens)
        if lacking > 0:
            self._extend(lacking)

    def _extend(self, pages: int) -> None:
        most = len(self.lengths) * self.row + 1
        self.table.add(max(min(int(self.table.pages * GROWTH), most) - self.table.pages, pages))
        for number, pair in enumerate(self._layers):
            self._layers[number] = pair and (self._extended(pair[0]), self._extended(pair[1]))
        self.moved += 1

    def _extended(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.table.pages, *old.shape[1:])
        new[: len(old)] = old
        return new

    # What is read

    def gather(self, slots: Sequence[int]) -> list[int]:
        """Pages need not lie beside each other."""
        return list(slots)

    def attention(self, singles: Sequence[Chunk], chunks: Sequence[Chunk]) -> PagedAttention:
        every = [*singles, *chunks]
        for chunk in every:
            self.reserve(chunk.slot, chunk.stop)
        longest, tokens = max(one.stop for one in every), sum(one.count for one in every)
        width = self.table.pages_of(longest)
        flat = send(torch.from_numpy(lay_out(self.table, every, width=width)), self.device)
        parts = Parts.of(flat, tokens, len(every), width)
        return PagedAttention(self, Layout(parts, max(one.count for one in every), longest))

    # What lies in the pages

    def keep(self, slot: int, tokens: int) -> None:
        self.lengths[slot] = tokens
        self.table.shrink(slot, tokens)

    def clear(self, slot: int) -> None:
        pages = self._pages(slot)
        for part in self._parts():
            part.index_fill_(0, pages, 0)
        self.keep(slot, 0)

    def copy(self, source: int, target: int, tokens: int) -> None:
        if source != target:
            self.keep(target, 0)
            self.reserve(target, tokens)
            into = self._pages(target)
            pages = self._pages(source)[: len(into)]
            for part in self._parts():
                part.index_copy_(0, into, part.index_select(0, pages))
        self.keep(target, tokens)

    def swap_out(self, slot: int, tokens: int) -> HostRow:
        pages = self._pages(slot)[: self.table.pages_of(tokens)]
        rows = tuple(
            pair and (self._taken(pair[0], pages, tokens), self._taken(pair[1], pages, tokens)) for pair in self._layers
        )
        self.keep(slot, 0)
        return HostRow(tokens, rows)

    @staticmethod
    def _taken(part: Tensor, pages: Tensor, tokens: int) -> Tensor:
        """(K, tokens, D) in host memory"""
        return part.index_select(0, pages).flatten(0, 1)[:tokens].transpose(0, 1).cpu()

    def swap_in(self, slot: int, row: HostRow) -> None:
        self.keep(slot, 0)
        self.reserve(slot, row.tokens)
        pages = self._pages(slot)
        places = (pages[:, None] * self.table.size + torch.arange(self.table.size, device=self.device)).flatten()
        for pair, host in zip(self._layers, row.layers, strict=True):
            if pair is not None and host is not None:
                for part, kept in zip(pair, host, strict=True):
                    part.flatten(0, 1).index_copy_(0, places[: row.tokens], kept.to(self.device).transpose(0, 1))
        self.keep(slot, row.tokens)

    def _pages(self, slot: int) -> Tensor:
        return send(torch.from_numpy(self.table.of(slot).astype(np.int64)), self.device)

    def _parts(self) -> Iterable[Tensor]:
        return (part for pair in self._layers if pair is not None for part in pair)
