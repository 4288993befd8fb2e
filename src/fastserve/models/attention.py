"""Causal attention of rows that lie end to end: each token sees itself and those before it in its own row.

`PackedCausal` is for whole rows (training, scoring); `CachedCausal` for rows that grow. `attend` is the plain formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from fastserve.models.causal import Attention
from fastserve.models.native import attention as native

FULL_ENOUGH = 0.8
"""Rows are attended together where the shortest has this share of the tokens of the longest."""
NEAR_ENOUGH = 8
"""Or lacks so few tokens."""
HALF = (torch.bfloat16, torch.float16)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sees: Tensor,
    *,
    scale: float,
    cap: float | None = None,
) -> Tensor:
    """query (..., H, Q, D), key and value (..., K, T, D), sees bool (Q, T): (..., H, Q, D), by the formula itself."""
    shared = query.shape[-3] // key.shape[-3]
    key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    shares = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    return shares.to(value.dtype) @ value


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """bool (Q, T): which positions of keys (T,) each position of queries (Q,) sees."""
    distance = queries[:, None] - keys
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of about the same length that are attended together, each padded at its end.

    A token does not see what follows it, so that padding at the end needs no mask. start: of its slots among those of
    all groups.
    """

    start: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.length


class PackedCausal:
    """Attention within the whole rows of a batch. offsets: int64 (B + 1,), as of a `RaggedTensor`."""

    def __init__(self, offsets: Tensor) -> None:
        self.offsets = offsets
        self._lengths = (offsets[1:] - offsets[:-1]).cpu()
        self.longest = int(self._lengths.max()) if len(self._lengths) else 0

    @cached_property
    def positions(self) -> Tensor:
        lengths = self.offsets[1:] - self.offsets[:-1]
        total = int(self._lengths.sum())
        first = torch.repeat_interleave(self.offsets[:-1], lengths, output_size=total)
        return torch.arange(total, device=self.offsets.device) - first

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
        if window is not None and window >= self.longest:
            window = None
        if not len(query):
            return self._nothing(query, key, value)
        if query.is_cuda and query.dtype in HALF and cap is None:
            return self._by_kernel(query, key, value, scale, window)
        if window is None and cap is None and native.serves(query, key, value, len(self._lengths), self.longest):
            return native.attend_rows(query, key, value, self.offsets, scale)
        query, key, value = self._pad(query), self._pad(key), self._pad(value)
        parts = [self._attend(group, query, key, value, scale, window, cap) for group in self._groups]
        return self._unpad(torch.cat(parts) if len(parts) != 1 else parts[0])

    def _nothing(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of no tokens, with gradients to all three: workers wait for those of every weight."""
        sees = torch.ones(0, 0, dtype=torch.bool, device=query.device)
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        return attend(query, key, value, sees, scale=1.0).transpose(0, 1)

    def _by_kernel(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """Flash attention for rows of any lengths (Dao 2023, arXiv 2307.08691)."""
        from torch.nn.attention.varlen import varlen_attn

        reach = -1 if window is None else window - 1
        found: Tensor = varlen_attn(  # type: ignore[assignment]
            query,
            key,
            value,
            self._offsets32,
            self._offsets32,
            self.longest,
            self.longest,
            scale=scale,
            window_size=(reach, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return found

    @cached_property
    def _offsets32(self) -> Tensor:
        return self.offsets.int()

    def _attend(
        self,
        group: Group,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        cap: float | None,
    ) -> Tensor:
        """Slots of a group, from those of all groups (S, H, D): (rows * length, H, D)."""
        query, key, value = (
            part[group.start : group.stop].view(group.rows, group.length, *part.shape[1:]).transpose(1, 2)
            for part in (query, key, value)
        )  # (B, H, T, D)
        places = torch.arange(group.length, device=query.device)
        if cap is not None:
            found = attend(query, key, value, visible(places, places, window), scale=scale, cap=cap)
        else:
            mask = None if window is None or window >= group.length else visible(places, places, window)
            found = functional.scaled_dot_product_attention(
                query,
                key,
                value,
                mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        return found.transpose(1, 2).reshape(group.rows * group.length, *found.shape[1::2])

    @cached_property
    def _order(self) -> Tensor:
        """Rows with tokens, the longest first."""
        order = torch.argsort(self._lengths, descending=True, stable=True)
        return order[self._lengths[order] > 0]

    @cached_property
    def _groups(self) -> list[Group]:
        lengths = self._lengths[self._order].tolist()
        return grouped(lengths)

    @cached_property
    def _is_whole(self) -> bool:
        """Whether all rows are equally long, so that there is no padding and their order stays."""
        return len(self._groups) == 1 and self._groups[0].rows * self.longest == int(self._lengths.sum())

    @cached_property
    def _slots(self) -> Tensor:
        """int64 (N,): the slot of each token among those of all groups."""
        firsts = torch.zeros(len(self._lengths), dtype=torch.int64)
        row = 0
        for group in self._groups:
            members = self._order[row : row + group.rows]
            firsts[members] = group.start + group.length * torch.arange(group.rows)
            row += group.rows
        total = int(self._lengths.sum())
        spread = torch.repeat_interleave(firsts, self._lengths, output_size=total)
        return spread.to(self.offsets.device) + self.positions

    def _pad(self, flat: Tensor) -> Tensor:
        """(N, H, D) to the slots of all groups (S, H, D), zero where there is no token."""
        if self._is_whole:
            return flat
        return flat.new_zeros(self._groups[-1].stop, *flat.shape[1:]).index_copy(0, self._slots, flat)

    def _unpad(self, padded: Tensor) -> Tensor:
        return padded if self._is_whole else padded.index_select(0, self._slots)


def grouped(lengths: Sequence[int]) -> list[Group]:
    """Groups of rows whose lengths, none of them 0, are given from the longest to the shortest."""
    groups: list[Group] = []
    start = first = 0
    for row in range(1, len(lengths) + 1):
        longest = lengths[first]
        if row == len(lengths) or lengths[row] < min(FULL_ENOUGH * longest, longest - NEAR_ENOUGH):
            groups.append(Group(start, row - first, longest))
            start, first = groups[-1].stop, row
    return groups


class CachedCausal:
    """What decoding remembers: of every layer and row the keys and values so far.

    Plain and slow, and so the truth that an engine is compared with. layers: of the network. rows: that are decoded.
    """

    def __init__(self, layers: int, rows: int) -> None:
        self.lengths = [0] * rows
        self._remembered: list[list[tuple[Tensor, Tensor] | None]] = [[None] * rows for _ in range(layers)]

    def extend(self, counts: Sequence[int], device: torch.device | str = "cpu") -> Attention:
        """Attention for the next counts[row] tokens of every row, which are then part of it.

        The tokens lie end to end in the order of the rows; a count may be 0.
        """
        before = self.lengths
        self.lengths = [length + count for length, count in zip(before, counts, strict=True)]
        places = [torch.arange(start, stop) for start, stop in zip(before, self.lengths, strict=True)]
        return _Extension(self._remembered, list(counts), torch.cat(places).to(device))

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which are counted from 0 in this order from now on."""
        self.lengths = [self.lengths[row] for row in rows]
        self._remembered = [[layer[row] for row in rows] for layer in self._remembered]


class _Extension:
    """Attention of some new tokens, which are remembered."""

    def __init__(
        self, remembered: list[list[tuple[Tensor, Tensor] | None]], counts: list[int], positions: Tensor
    ) -> None:
        self.remembered, self.counts, self.positions = remembered, counts, positions

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
        found = []
        start = 0
        for row, count in enumerate(self.counts):
            new = slice(start, start := start + count)
            keys, values = self._remember(layer, row, key[new], value[new])  # (T, K, D)
            sees = visible(self.positions[new], torch.arange(len(keys), device=keys.device), window)
            heads = query[new].transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1)
            found.append(attend(*heads, sees, scale=scale, cap=cap).transpose(0, 1))
        return torch.cat(found)

    def _remember(self, layer: int, row: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        before = self.remembered[layer][row]
        together = (key, value) if before is None else (torch.cat([before[0], key]), torch.cat([before[1], value]))
        self.remembered[layer][row] = together
        return together
