"""Attention of one step of an engine: rows that go on by one token, all at once, and chunks that are read.

Of each token the keys and values are put into its slot; then the rows in front are attended together, in the cache as
it lies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from fastserve.generation.key_values import Chunk
from fastserve.models.attention import attend, visible
from fastserve.models.native import attention as native

if TYPE_CHECKING:
    from fastserve.generation.slots import SlotCache

APART = 512
"""Attending a row by itself takes as long as so many tokens more."""


class StepAttention:
    """An `Attention`. singles: of one token each, whose rows lie in front in this order; chunks: of any length.

    The step's tokens are those of the singles and then those of the chunks, end to end.
    """

    def __init__(self, cache: SlotCache, singles: Sequence[Chunk], chunks: Sequence[Chunk]) -> None:
        for chunk in (*singles, *chunks):
            cache.reserve(chunk.slot, chunk.stop)
        self.cache, self.chunks = cache, chunks
        self.rows = len(singles)
        self.lengths = [chunk.stop for chunk in singles]
        self._masks: dict[tuple[int | None, torch.dtype], tuple[int, Tensor | None]] = {}
        places = [chunk.start for chunk in singles] + [at for one in chunks for at in range(one.start, one.stop)]
        self.positions = torch.tensor(places, device=cache.device)

    def of_chunks(self) -> StepAttention:
        """Without the singles."""
        return StepAttention(self.cache, (), self.chunks)

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
        cap: float | None = None,
    ) -> Tensor:
        keys, values = self.cache.layer(layer, key, value)
        self._write(keys, key)
        self._write(values, value)
        if not self.chunks:
            return self._singles(query, keys, values, scale, window, cap)
        found = torch.empty_like(query)
        if self.rows:
            found[: self.rows] = self._singles(query[: self.rows], keys, values, scale, window, cap)
        for chunk, start in zip(self.chunks, self._starts, strict=True):
            part = slice(start, start + chunk.count)
            found[part] = self._chunk(chunk, query[part], keys, values, scale, window, cap)
        return found

    @cached_property
    def _starts(self) -> list[int]:
        """Where each chunk's tokens begin among those of the step."""
        return list(accumulate((chunk.count for chunk in self.chunks), initial=self.rows))[:-1]

    @cached_property
    def _front(self) -> Tensor:
        return torch.arange(self.rows, device=self.cache.device)

    def _write(self, into: Tensor, new: Tensor) -> None:
        """into (rows, K, capacity, D), new (N, K, D)"""
        if self.rows:
            into[self._front, :, self.positions[: self.rows]] = new[: self.rows]
        for chunk, start in zip(self.chunks, self._starts, strict=True):
            place = self.cache.places[chunk.slot]
            into[place, :, chunk.start : chunk.stop] = new[start : start + chunk.count].transpose(0, 1)

    # One token a row

    def _singles(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """query (B, H, D): the rows in front together, then those apart that are much longer."""
        low, mask = self._mask(window, query.dtype)
        high = self._together
        part = slice(low, high)
        found = _folded(query, keys[: self.rows, :, part], values[: self.rows, :, part], mask, scale, cap)
        for row in self._long:
            part = slice(0 if window is None else max(self.lengths[row] - window, 0), self.lengths[row])
            one = slice(row, row + 1)
            found[one] = _folded(query[one], keys[one, :, part], values[one, :, part], None, scale, cap)
        return found

    @cached_property
    def _together(self) -> int:
        """Tokens up to which all rows are attended together."""
        return together(self.lengths)

    @cached_property
    def _long(self) -> list[int]:
        return [row for row, length in enumerate(self.lengths) if length > self._together]

    def _mask(self, window: int | None, dtype: torch.dtype) -> tuple[int, Tensor | None]:
        """The first token that any row sees, and what is added to the scores from there on: (B, 1, 1, T) or nothing.

        The same for all layers of a step.
        """
        if (window, dtype) not in self._masks:
            low, sees = self._visible(window)
            mask = None
            if sees is not None:
                mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)
            self._masks[window, dtype] = low, mask
        return self._masks[window, dtype]

    def _visible(self, window: int | None) -> tuple[int, Tensor | None]:
        high = self._together
        short = [length for length in self.lengths if length <= high]
        low = 0 if window is None else max(min(short) - window, 0)
        if min(short) == high and (window is None or high - low <= window):
            return low, None
        last = self.positions[: self.rows].clamp(max=high - 1)  # of those apart something is seen, whatever it is
        sees = visible(last, torch.arange(low, high, device=last.device), window)
        return low, sees[:, None, None]

    # Chunks

    def _chunk(
        self,
        chunk: Chunk,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window: int | None,
        cap: float | None,
    ) -> Tensor:
        """query (count, H, D) over one row."""
        low = 0 if window is None else max(chunk.start + 1 - window, 0)
        place = self.cache.places[chunk.slot]
        key, value = keys[place, :, low : chunk.stop], values[place, :, low : chunk.stop]  # (K, T, D)
        if window is None and cap is None:
            rows = key.transpose(0, 1), value.transpose(0, 1)
            if native.serves(query, *rows, 1, chunk.stop):
                return native.attend_chunk(query, *rows, scale)
        heads = query.transpose(0, 1)
        causal = low == chunk.start == 0 and (window is None or chunk.count <= window)
        sees = None if causal and cap is None else self._sees(chunk, low, window)
        if cap is not None and sees is not None:
            return attend(heads, key, value, sees, scale=scale, cap=cap).transpose(0, 1)
        found = functional.scaled_dot_product_attention(
            heads[None],
            key[None],
            value[None],
            sees,
            is_causal=causal,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[0],
        )
        return found[0].transpose(0, 1)

    def _sees(self, chunk: Chunk, low: int, window: int | None) -> Tensor:
        device = self.cache.device
        return visible(
            torch.arange(chunk.start, chunk.stop, device=device), torch.arange(low, chunk.stop, device=device), window
        )


def together(lengths: Sequence[int]) -> int:
    """How many tokens of every row are best attended at once, where those of longer rows are attended apart.

    Together costs rows * tokens; a row apart its own tokens and `APART` more.
    """
    best, cost = 0, float("inf")
    apart = 0
    for length in sorted(lengths, reverse=True):
        found = apart + len(lengths) * length
        if found < cost:
            best, cost = length, found
        apart += length + APART
    return best


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float | None) -> Tensor:
    """query (B, H, D), key and value (B, K, T, D), mask (B, 1, 1, T), added: (B, H, D).

    The query heads of a shared key head are taken for as many queries, so that no key is repeated.
    """
    rows, heads, size = query.shape
    shared = key.shape[1]
    if cap is None and not (query.device.type == "cpu" and query.dtype is torch.float32):
        folded = query.view(rows, shared, heads // shared, size)
        found = functional.scaled_dot_product_attention(folded, key, value, mask, scale=scale)
        return found.reshape(rows, heads, size)
    # for the few queries of a row, products of matrices take two thirds of the time of the fused kernel
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if mask is not None:
        mask = mask.expand(rows, shared, 1, -1).reshape(rows * shared, 1, -1)
    shares = _scores(query.reshape(rows * shared, heads // shared, size), key, mask, scale, cap).softmax(-1)
    return torch.bmm(shares.to(value.dtype), value).view(rows, heads, size)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, cap: float | None) -> Tensor:
    """query (B, G, D), key (B, T, D), mask (B, 1, T): (B, G, T)"""
    keys = key.transpose(1, 2)
    if cap is not None:
        scores = cap * torch.tanh(torch.bmm(query, keys).float() * (scale / cap))
        return scores if mask is None else scores.add_(mask)
    if mask is not None:
        return torch.baddbmm(mask, query, keys, alpha=scale)
    return torch.bmm(query, keys).mul_(scale)
