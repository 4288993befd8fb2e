"""Which page has which tokens of which slot. Accounting only, no torch.

A page has room for `size` tokens of one slot. Page 0 is nobody's: what has no place anywhere is written there.
"""

from __future__ import annotations

import numpy as np


class PageTable:
    """slots; row: most pages of a slot; pages: that there are, page 0 among them; size: tokens of a page.

    Every change keeps: each page but 0 is free or in one slot, once.
    """

    def __init__(self, slots: int, row: int, pages: int, size: int) -> None:
        self.size, self.pages = size, pages
        self.counts = [0] * slots
        """Pages of each slot."""
        self.table = np.zeros((slots, row), np.int32)
        """The pages of each slot in the order of its tokens, then 0."""
        self._free = list(range(pages - 1, 0, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def pages_of(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def of(self, slot: int) -> np.ndarray:
        """int32: its pages."""
        found: np.ndarray = self.table[slot, : self.counts[slot]]
        return found

    def lacking(self, slot: int, tokens: int) -> int:
        """Pages that there are too few, that the slot may have so many tokens; 0 and less: there are enough."""
        return self.pages_of(tokens) - self.counts[slot] - len(self._free)

    def grow(self, slot: int, tokens: int) -> None:
        """The slot has room for so many tokens, at least. The caller has seen that enough pages are free."""
        need = self.pages_of(tokens) - self.counts[slot]
        for _ in range(need):
            self.table[slot, self.counts[slot]] = self._free.pop()
            self.counts[slot] += 1

    def shrink(self, slot: int, tokens: int) -> None:
        """Pages behind the first tokens are given back."""
        kept = self.pages_of(tokens)
        if self.counts[slot] > kept:
            self._free += self.of(slot)[kept:][::-1].tolist()
            self.table[slot, kept:] = 0
            self.counts[slot] = kept

    def add(self, pages: int) -> None:
        """So many more pages, which are free."""
        self._free = [*range(self.pages + pages - 1, self.pages - 1, -1), *self._free]
        self.pages += pages

    def places(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where tokens at these positions of these slots lie among those of all pages, end to end."""
        found: np.ndarray = self.table[slots, positions // self.size] * self.size + positions % self.size
        return found

    def check(self) -> None:
        """ValueError where a page is lost, or held twice."""
        held = [page for slot in range(len(self.counts)) for page in self.of(slot).tolist()]
        if sorted([*held, *self._free]) != list(range(1, self.pages)):
            raise ValueError(
                f"pages in slots {sorted(held)} and free ones {sorted(self._free)}: expected 1 to "
                f"{self.pages - 1}, once each"
            )
        for slot, count in enumerate(self.counts):
            if self.table[slot, count:].any():
                raise ValueError(f"slot {slot} has {count} pages, but its table names more: {self.table[slot]}")
