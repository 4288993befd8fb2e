"""What a runner asks of what keeps the keys and values of the texts that grow.

Two do: `SlotCache`, in which a slot has a row of its own, whole, as processors like it; and `PagedCache`, in which it
has pages, as the kernels of graphics processors take them. Whoever moves, swaps and reads does not know which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastserve.models.causal import Attention

Pair = tuple[Tensor, Tensor]
"""Keys and values."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one slot that are read: `count` of them, before which it has `start`."""

    slot: int
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class HostRow:
    """A row that was swapped out: of every layer keys and values (K, tokens, D) in host memory."""

    tokens: int
    layers: tuple[Pair | None, ...]


class KeyValues(Protocol):
    """Keys and values by slot, as the scheduler numbers them."""

    lengths: list[int]
    """Tokens of each slot that are worth keeping when it is moved."""

    @property
    def bytes(self) -> int:
        """That all tensors have."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens for which there is room in them."""
        ...

    def room(self, tokens: int) -> int:
        """Tokens for which there must be room, that a slot may have so many."""
        ...

    def gather(self, slots: Sequence[int]) -> list[int]:
        """The slots in the order in which they are best read together."""
        ...

    def attention(self, singles: Sequence[Chunk], chunks: Sequence[Chunk]) -> Attention:
        """Of a step that reads these tokens: singles, of one token each and in the order of `gather`, then chunks."""
        ...

    def keep(self, slot: int, tokens: int) -> None:
        """Only the first tokens of a slot are of use from now on."""
        ...

    def clear(self, slot: int) -> None:
        """Forget a slot whose numbers may be none."""
        ...

    def copy(self, source: int, target: int, tokens: int) -> None:
        """The first tokens of a slot become those of another, or all that the same one has."""
        ...

    def swap_out(self, slot: int, tokens: int) -> HostRow:
        """The first tokens of a slot, in host memory; the slot has none then."""
        ...

    def swap_in(self, slot: int, row: HostRow) -> None:
        """They come back, into any slot."""
        ...
