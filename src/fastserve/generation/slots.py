"""Keys and values of the texts that an engine writes: one contiguous row of a tensor for each slot.

A slot is a number that the scheduler gives; where its row lies is known here alone. Rows that take part in a step are
kept in front, so that one view of the tensor holds them all and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastserve.generation.key_values import Chunk, HostRow, Pair
from fastserve.generation.step_attention import StepAttention

GRAIN = 64
"""Tokens by which rows grow at least."""
GROWTH = 1.5
"""Times what there is, by which rows grow, so that they are seldom copied."""


class SlotCache:
    """A `KeyValues`. layers: of the network; slots: as the scheduler numbers them; longest: most tokens of a row.

    Tensors (rows, K, capacity, D) are made when a layer's first keys come, and grow with the rows and tokens in use.
    Whatever lies behind a row's end is finite: it is attended to with the weight 0.
    """

    def __init__(self, layers: int, slots: int, longest: int, device: torch.device | str = "cpu") -> None:
        self.slots, self.longest, self.device = slots, longest, torch.device(device)
        self.lengths = [0] * slots
        self.places = list(range(slots))
        """Row of each slot."""
        self._slot_at = list(range(slots))
        self._layers: list[Pair | None] = [None] * layers
        self._rows = self._capacity = 0

    @property
    def bytes(self) -> int:
        """That all tensors have, untouched memory included."""
        return sum(part.nbytes for pair in self._layers if pair is not None for part in pair)

    @property
    def capacity(self) -> int:
        """Tokens for which all rows have room now, together."""
        return self._rows * self._capacity

    def room(self, tokens: int) -> int:
        return tokens

    def layer(self, number: int, key: Tensor, value: Tensor) -> Pair:
        """Keys and values (rows, K, capacity, D) of a layer, of the form and type of new ones (N, K, D)."""
        pair = self._layers[number]
        if pair is None:
            pair = self._empty(key), self._empty(value)
            self._layers[number] = pair
        return pair

    def _empty(self, like: Tensor) -> Tensor:
        shape = (self._rows, like.shape[1], self._capacity, like.shape[2])
        return zeros(shape, like.dtype, self.device)

    def reserve(self, slot: int, tokens: int) -> None:
        """The slot will have so many tokens: make room."""
        self._grow(self.places[slot] + 1, tokens)

    def _grow(self, rows: int, capacity: int) -> None:
        if rows <= self._rows and capacity <= self._capacity:
            return
        if rows > self._rows:
            self._rows = min(max(rows, 2 * self._rows), self.slots)
        if capacity > self._capacity:
            wanted = max(capacity, int(self._capacity * GROWTH))
            self._capacity = min(-(-wanted // GRAIN) * GRAIN, self.longest)
        self._layers = [pair and (self._grown(pair[0]), self._grown(pair[1])) for pair in self._layers]

    def _grown(self, old: Tensor) -> Tensor:
        new = zeros((self._rows, old.shape[1], self._capacity, old.shape[3]), old.dtype, self.device)
        for place in range(len(old)):
            kept = self.lengths[self._slot_at[place]]
            new[place, :, :kept] = old[place, :, :kept]
        return new

    # Where rows lie

    def gather(self, slots: Sequence[int]) -> list[int]:
        """Move the rows of these slots to the front; the slots in the order in which their rows then lie."""
        count = len(slots)
        self._grow(max((self.places[slot] for slot in slots), default=-1) + 1, 0)
        inside = set(slots)
        holes = [place for place in range(count) if self._slot_at[place] not in inside]
        outside = [slot for slot in slots if self.places[slot] >= count]
        for place, slot in zip(holes, outside, strict=True):
            self._exchange(self.places[slot], place)
        return self._slot_at[:count]

    def attention(self, singles: Sequence[Chunk], chunks: Sequence[Chunk]) -> StepAttention:
        return StepAttention(self, singles, chunks)

    def _exchange(self, first: int, second: int) -> None:
        """Swap two rows, as far as there is anything in them."""
        one, other = self._slot_at[first], self._slot_at[second]
        for part in self._parts():
            kept = _row(part, first, self.lengths[one]).clone()
            _row(part, first, self.lengths[other]).copy_(_row(part, second, self.lengths[other]))
            _row(part, second, self.lengths[one]).copy_(kept)
        self._slot_at[first], self._slot_at[second] = other, one
        self.places[one], self.places[other] = second, first

    # What lies in them

    def keep(self, slot: int, tokens: int) -> None:
        self.lengths[slot] = tokens

    def clear(self, slot: int) -> None:
        for part in self._parts():
            part[self.places[slot]].zero_()
        self.lengths[slot] = 0

    def copy(self, source: int, target: int, tokens: int) -> None:
        if source != target:
            self.reserve(target, tokens)
            for part in self._parts():
                _row(part, self.places[target], tokens).copy_(_row(part, self.places[source], tokens))
        self.lengths[target] = tokens

    def swap_out(self, slot: int, tokens: int) -> HostRow:
        place = self.places[slot]
        rows = tuple(
            pair and (_to_host(_row(pair[0], place, tokens)), _to_host(_row(pair[1], place, tokens)))
            for pair in self._layers
        )
        self.lengths[slot] = 0
        return HostRow(tokens, rows)

    def swap_in(self, slot: int, row: HostRow) -> None:
        self.reserve(slot, row.tokens)
        for pair, host in zip(self._layers, row.layers, strict=True):
            if pair is not None and host is not None:
                for part, kept in zip(pair, host, strict=True):
                    _row(part, self.places[slot], row.tokens).copy_(kept)
        self.lengths[slot] = row.tokens

    def _parts(self) -> Iterable[Tensor]:
        return (part for pair in self._layers if pair is not None for part in pair)


def _row(part: Tensor, place: int, tokens: int) -> Tensor:
    """The first tokens of a row (K, tokens, D); a row with none need not be there yet."""
    return part[place, :, :tokens] if tokens else part.new_empty((part.shape[1], 0, part.shape[3]))


def _to_host(part: Tensor) -> Tensor:
    return part.clone().cpu() if part.device.type == "cpu" else part.cpu()


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory before something is written, where the system can do that."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = np.zeros(int(np.prod(shape)) * size, np.uint8)  # torch writes zeros, the C library maps pages of them
    return torch.from_numpy(raw).view(dtype).view(shape) if len(raw) else torch.zeros(shape, dtype=dtype)
