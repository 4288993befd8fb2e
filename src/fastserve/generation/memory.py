"""How the keys and values of a network's texts are kept on its device, and whether its steps are recorded there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from fastserve.generation.key_values import KeyValues
from fastserve.generation.network import Decodes
from fastserve.generation.paged_attention import kernel_for
from fastserve.generation.paged_cache import PAGE, PagedCache
from fastserve.generation.recorded import CudaGraphs, Record, Recorded
from fastserve.generation.slots import SlotCache

SPARE = 16
"""Pages, beyond two for each slot, with which a pool begins whose size nobody says."""


class Memory(NamedTuple):
    cache: KeyValues
    recorded: Recorded | None = None


class Budget(NamedTuple):
    """tokens: that all slots may have together; needed: of a slot, those that are still of use to somebody."""

    tokens: int
    needed: Callable[[int], int]


def memory_of(network: Decodes, slots: int, place: torch.device, budget: Budget | None = None) -> Memory:
    """slots: as the scheduler numbers them."""
    kernel = kernel_for(network, place)
    if kernel is None:
        return Memory(SlotCache(network.layers, slots, network.longest, place))
    pages, needed = _pages(slots, -(-network.longest // PAGE), budget), None if budget is None else budget.needed
    cache = PagedCache(network.layers, slots, network.longest, place, kernel, pages=pages, page=PAGE, needed=needed)
    record = recorder(network, place)
    return Memory(cache, None if record is None else Recorded(network, cache, record))


def _pages(slots: int, row: int, budget: Budget | None) -> int:
    """Of each slot the last page may be hardly used; and a prefix is copied before the pages of its source are free."""
    pages = 2 * slots + SPARE if budget is None else -(-budget.tokens // PAGE) + slots + row
    return min(pages, slots * row)


def recorder(network: Decodes, place: torch.device) -> Record | None:
    """None where steps are not recorded: other forms of networks may do what a recording does not allow."""
    return CudaGraphs(place) if place.type == "cuda" and getattr(network, "is_recordable", False) else None
