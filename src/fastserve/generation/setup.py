"""What `auto` means for an engine: how many texts, how much cache, how large a chunk, on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from fastserve import device
from fastserve.errors import ConfigError
from fastserve.generation.cache import RowCache
from fastserve.generation.forms import Form, form_of
from fastserve.generation.limits import Limits
from fastserve.generation.network import Decodes
from fastserve.generation.orders import EngineOptions
from fastserve.generation.parallel import SharedForm, SharedNetwork
from fastserve.generation.precision import Precision, pick
from fastserve.generation.profile import profile
from fastserve.generation.runner import Part, Runner
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.step_cost import SMALL_DECODER, StepCost
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
    """Of a network and options; a first token is read to learn its sizes.

    ConfigError where the network is not shared by as many processes as the options say.
    """

    def __init__(self, network: CausalNetwork, options: EngineOptions, adapters: Mapping[str, Path]) -> None:
        self.network, self.options, self.folders = network, options, adapters
        self.processes = network.processes if isinstance(network, SharedNetwork) else 1
        if options.tensor_parallel not in (1, self.processes):
            raise ConfigError(
                f"tensor_parallel = {options.tensor_parallel}, but this network is computed by {self.processes}: give "
                "the engine one that is shared by so many processes (bundle.shares.share_network)"
            )

    @cached_property
    def precision(self) -> Precision:
        return pick(self.options.precision, self.place)

    @cached_property
    def _form(self) -> Form | SharedForm:
        if isinstance(self.network, SharedNetwork):
            return self.network.form(self.precision, self.folders)
        return form_of(self.network, self.precision, self.folders)

    @property
    def fast(self) -> Decodes:
        """The network in the form that is decoded with."""
        return self._form.network if isinstance(self._form, Form) else self._form

    def runner(self, slots: int, books: RowCache | None = None) -> Runner:
        """One for whatever is computed from now on; those that were made before it are not used again."""
        return self._form.runner(slots, books)

    @property
    def place(self) -> torch.device:
        return next(self.network.head.parameters()).device

    @cached_property
    def _tried(self) -> tuple[int, int, int]:
        """Size of the vocabulary, and bytes that the cache needs for a token and for a row of the longest."""
        runner = self.runner(1)
        logits = runner.read([Part(0, 0, [0], 1)])
        token = -(-runner.cache.bytes // runner.cache.capacity)
        return logits.shape[-1], token, token * runner.cache.room(self.network.longest)

    @property
    def vocabulary(self) -> int:
        return self._tried[0]

    @property
    def token_bytes(self) -> int:
        return self._tried[1]

    @property
    def row_bytes(self) -> int:
        return self._tried[2]

    @cached_property
    def _memory(self) -> int:
        """Of each process."""
        return (device.free_memory(self.place) or UNKNOWN_MEMORY) // self.processes

    @property
    def drafts(self) -> int:
        """Most tokens that are guessed ahead of a text."""
        return DRAFTS if self.options.speculation == "auto" else self.options.speculation

    def limits(self) -> Limits:
        """Rows that may all be as long as the network reads fit into the memory, so that `auto` never runs out."""
        options, longest = self.options, self.network.longest
        rows_at_most = max(int(self._memory * CACHE_SHARE) // self.row_bytes, 1)
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
        cost = self._measured(limits.slots, seconds) if seconds else SMALL_DECODER
        return Scheduler.create(self.options.policy, limits, cost)

    def _measured(self, slots: int, seconds: float) -> StepCost:
        runner = self.runner(slots)
        runner.warm(slots)
        return profile(runner, slots, seconds=seconds)
