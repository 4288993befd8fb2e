"""What `auto` means for an engine: how many texts, how much cache, how large a chunk, on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from fastserve import device
from fastserve.generation.adapters import Adapters
from fastserve.generation.fast_decoder import fast_form
from fastserve.generation.limits import Limits
from fastserve.generation.network import Decodes
from fastserve.generation.orders import EngineOptions
from fastserve.generation.precision import Precision, lighter, pick, unwrapped
from fastserve.generation.profile import profile
from fastserve.generation.runner import Part, Runner
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.step_cost import SMALL_DECODER
from fastserve.models.causal import CausalNetwork

SLOTS = 64
ROWS = 256
CHUNK = 512
DRAFTS = 4
CACHE_SHARE = 0.5
"""Of the free memory."""
SWAP_SHARE = 0.1
"""Of the free memory, for caches that are swapped out where there are more texts than rows."""
UNKNOWN_MEMORY = 2 << 30


class Setup:
    """Of a network and options; a first token is read to learn its sizes."""

    def __init__(self, network: CausalNetwork, options: EngineOptions, adapters: Mapping[str, Path]) -> None:
        self.network, self.options, self.folders = network, options, adapters

    @cached_property
    def adapters(self) -> Adapters | None:
        return Adapters(self.network, self.folders) if self.folders else None

    @cached_property
    def precision(self) -> Precision:
        return pick(self.options.precision, self.place)

    @cached_property
    def fast(self) -> Decodes:
        """The network in the form that is decoded with."""
        wrap = unwrapped if self.adapters is None else self.adapters.wrap
        fast = fast_form(self.network, self.precision, wrap)
        if fast is not None:
            return fast
        plain = self.precision == "float32" and self.adapters is None
        return self.network if plain else lighter(self.network, self.precision, wrap)

    @property
    def place(self) -> torch.device:
        return next(self.network.head.parameters()).device

    @cached_property
    def _tried(self) -> tuple[int, int]:
        """Size of the vocabulary, and bytes that the cache needs for a token."""
        runner = Runner(self.fast, 1)
        logits = runner.read([Part(0, 0, [0], 1)])
        tokens = runner.cache.capacity
        return logits.shape[-1], -(-runner.cache.bytes // tokens)

    @property
    def vocabulary(self) -> int:
        return self._tried[0]

    @property
    def token_bytes(self) -> int:
        return self._tried[1]

    @cached_property
    def _memory(self) -> int:
        return device.free_memory(self.place) or UNKNOWN_MEMORY

    @property
    def drafts(self) -> int:
        """Most tokens that are guessed ahead of a text."""
        return DRAFTS if self.options.speculation == "auto" else self.options.speculation

    def limits(self) -> Limits:
        """Rows that may all be as long as the network reads fit into the memory, so that `auto` never runs out."""
        options, longest = self.options, self.network.longest
        rows_at_most = max(int(self._memory * CACHE_SHARE) // (self.token_bytes * longest), 1)
        slots = min(SLOTS, rows_at_most) if options.slots == "auto" else options.slots
        rows = max(min(ROWS, rows_at_most), slots) if options.rows == "auto" else max(options.rows, slots)
        per_row = -(-(longest + self.drafts) // options.block_size)
        blocks = (
            rows * per_row
            if options.cache_tokens == "auto"
            else (options.cache_tokens + self.drafts) // options.block_size
        )
        swapped = int(self._memory * SWAP_SHARE) // (self.token_bytes * options.block_size)
        return Limits(
            slots=slots,
            rows=rows,
            blocks=max(blocks, 1),
            block_size=options.block_size,
            host_blocks=swapped,
            drafts=self.drafts,
            chunk=CHUNK if options.chunk == "auto" else options.chunk,
            max_waiting_tokens=options.max_waiting_tokens,
        )

    def scheduler(self) -> Scheduler:
        limits = self.limits()
        seconds = self.options.profile_seconds
        cost = profile(Runner(self.fast, limits.slots), limits.slots, seconds=seconds) if seconds else SMALL_DECODER
        return Scheduler.create(self.options.policy, limits, cost)
