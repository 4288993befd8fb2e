"""Attention of one step over pages: singles and chunks together, in one call of a kernel.

`by_kernel` is that of torch (FlashAttention-2, Dao 2023, arXiv 2307.08691; pages as in PagedAttention, Kwon et al.
2023, arXiv 2309.06180); `by_formula` takes the same arguments and is what it is tested against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastserve.generation.calls import Recorder
from fastserve.generation.key_values import Chunk
from fastserve.generation.network import Decodes
from fastserve.models.attention import HALF, attend

if TYPE_CHECKING:
    from fastserve.generation.paged_cache import PagedCache
    from fastserve.generation.pages import PageTable

WITH_PAGES = (2, 13)
"""Of torch: its kernel takes pages from 2.12 on, but there nobody can say into how many parts it splits a row."""
AMPERE = (8, 0)
"""Compute capability from which on the kernel runs."""
LARGEST, GRAIN = 256, 8
"""Features of a head: at most, and a multiple of."""


class PageKernel(Protocol):
    """`torch.nn.attention.varlen.varlen_attn`, as far as it is asked."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: Tensor,
        block_table: Tensor,
        num_splits: int,
    ) -> Tensor:
        """query (N, H, D), key and value (pages, size, K, D), all else int32: cu_seq_q and cu_seq_k (R + 1,), where
        the queries and keys of each row begin and end; seqused_k (R,), keys of each; block_table (R, pages of a row).

        The last queries of a row are as far as its keys reach. window_size: of keys that a query sees, before it and
        after it; -1 for all. Returns (N, H, D).
        """
        ...


def by_kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, **how: Any
) -> Tensor:
    """A `PageKernel` for CUDA and 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    found: Tensor = varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **how)  # type: ignore[assignment]
    return found


def by_formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> Tensor:
    """A `PageKernel` for every device and type: pages are gathered, row by row."""
    found = torch.empty_like(query)
    before, after = window_size
    for row, (start, stop) in enumerate(pairwise(cu_seq_q.tolist())):
        length = int(seqused_k[row])
        pages = block_table[row, : -(-length // key.shape[1])].long()
        keys, values = (pool[pages].flatten(0, 1)[:length].transpose(0, 1) for pool in (key, value))
        last = torch.arange(length - stop + start, length, device=query.device)
        distance = last[:, None] - torch.arange(length, device=query.device)
        sees = torch.ones_like(distance, dtype=torch.bool) if after < 0 else distance >= -after
        if before >= 0:
            sees &= distance <= before
        found[start:stop] = attend(query[start:stop].transpose(0, 1), keys, values, sees, scale=scale).transpose(0, 1)
    return found


class Parts(NamedTuple):
    """What a step is told, int32: of N tokens and R rows."""

    positions: Tensor
    """(N,)"""
    targets: Tensor
    """(N,): where each lies among the tokens of all pages."""
    queries: Tensor
    """(R + 1,)"""
    keys: Tensor
    """(R + 1,)"""
    lengths: Tensor
    """(R,)"""
    table: Tensor
    """(R, pages of a row)"""

    @classmethod
    def of(cls, flat: Tensor, tokens: int, rows: int, width: int) -> Parts:
        """Views of what `lay_out` gives. width: pages of a row."""
        sizes = [tokens, tokens, rows + 1, rows + 1, rows, rows * width]
        positions, targets, queries, keys, lengths, table = torch.split(flat, sizes)
        return cls(positions, targets, queries, keys, lengths, table.view(rows, width))


def lay_out(table: PageTable, chunks: Sequence[Chunk], *, width: int, spare: int = 0) -> np.ndarray:
    """int32: the `Parts` of a step that reads these tokens, end to end.

    width: pages of a row. spare: rows of one token more that are nobody's, and lie in page 0.
    """
    slots, starts, counts = np.array([(one.slot, one.start, one.count) for one in chunks], np.int64).reshape(-1, 3).T
    queries = np.concatenate([[0], counts.cumsum()])
    tokens = np.repeat(np.arange(len(slots)), counts)
    positions = np.arange(queries[-1]) - (queries[:-1] - starts)[tokens]
    lengths = np.concatenate([starts + counts, np.ones(spare, np.int64)])
    rows = np.zeros((len(lengths), width), np.int32)
    rows[: len(slots)] = table.table[slots, :width]
    parts = [
        *(positions, np.zeros(spare)),
        *(table.places(slots[tokens], positions), np.arange(spare) % table.size),
        *(queries, queries[-1] + 1 + np.arange(spare)),
        *([0], lengths.cumsum(), lengths, rows.reshape(-1)),
    ]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


@dataclass(frozen=True, slots=True)
class Layout:
    """most: queries of a row, longest: keys of a row, both at most."""

    parts: Parts
    most: int
    longest: int


class PagedAttention:
    """An `Attention`. What is new is written to its pages, then all rows are attended to at once."""

    def __init__(self, cache: PagedCache, layout: Layout) -> None:
        self.cache, self.layout = cache, layout
        self.positions = layout.parts.positions.long()
        self._targets = layout.parts.targets.long()

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
        if cap is not None:
            raise ValueError(f"layer {layer} caps its scores at {cap}, which no kernel for pages does")
        keys, values = self.cache.layer(layer, key, value)
        for pool, new in ((keys, key), (values, value)):
            pool.flatten(0, 1).index_copy_(0, self._targets, new)
        parts, most, longest = self.layout.parts, self.layout.most, self.layout.longest
        before = -1 if window is None or window >= longest else window - 1
        # the only query of a row sees all its keys: said so, the kernel takes the heads that share a key together
        after = -1 if most == 1 and before < 0 else 0
        return self.cache.kernel(
            query,
            keys,
            values,
            parts.queries,
            parts.keys,
            most,
            longest,
            scale=scale,
            window_size=(before, after),
            enable_gqa=query.shape[1] != key.shape[1],
            seqused_k=parts.lengths,
            block_table=parts.table,
            # a row that is split into several parts is put together wrongly (github.com/pytorch/pytorch/issues/194167);
            # whole, it is the same to the last bit whoever is beside it
            num_splits=1,
        )


@torch.inference_mode()
def fits_pages(network: Decodes, place: torch.device) -> bool:
    """Whether the kernel computes what the network asks, which a token is read to learn."""
    recorder = Recorder(torch.tensor([0, 1], device=place))
    network.hidden(torch.zeros(1, dtype=torch.int64, device=place), recorder)
    return bool(recorder.calls) and all(
        call.dtype in HALF and call.size <= LARGEST and call.size % GRAIN == 0 and call.cap is None
        for call in recorder.calls.values()
    )


def kernel_for(network: Decodes, place: torch.device) -> PageKernel | None:
    """What attends to pages on a device; None where a row for each slot is the better way, or the only one."""
    if place.type != "cuda" or torch.version.cuda is None or not knows_pages():
        return None
    if torch.cuda.get_device_capability(place) < AMPERE or not torch.backends.cuda.is_flash_attention_available():
        return None
    return by_kernel if fits_pages(network, place) else None


def knows_pages() -> bool:
    """Whether torch is new enough for it."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= WITH_PAGES
