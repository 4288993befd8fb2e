"""`fsdp`: every worker keeps a shard of each weight, of its gradient and of the optimizer's state.

A model larger than the memory of one worker trains: a block's weights are together only while it computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar, Literal, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from fastserve import device
from fastserve.config import Section
from fastserve.distributed.averaging import Averaging
from fastserve.distributed.collectives import Gather, Scatter
from fastserve.distributed.sharded import copy_shard
from fastserve.distributed.strategy import Named, start_alike
from fastserve.distributed.world import World
from fastserve.errors import TrainingError
from fastserve.models.network import HasFirstValues

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROOM = 16
"""Times the weights that each worker of a machine has free where freed memory may be kept. A step of one of two workers
took 3.8 times as much at its peak (2 times where it was given back)."""


class FsdpOptions(Section):
    """`distributed.options` of fsdp."""

    weights: Literal["fp32", "bf16"] = Field(
        "fp32", description="what weights travel and are computed with as; shards and optimizer stay fp32"
    )
    gradients: Literal["fp32", "bf16"] = Field("fp32", description="what gradients travel as")
    reshard_after_forward: bool = Field(
        True, description="drop a block's weights until its backward pass: less memory, gathered twice in a step"
    )
    cpu_offload: bool = Field(False, description="keep shards in the machine's memory and not in that of the GPU")


class Fsdp(Averaging):
    """Shards by torch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277), around each block and around the rest.

    The result of a step is that of one worker with all rows, to rounding.
    """

    Options: ClassVar[type[Section]] = FsdpOptions
    options: FsdpOptions
    starts_empty = True

    def __init__(self, options: FsdpOptions, world: World) -> None:
        super().__init__(options, world)
        self.gathers = world.device.type != "cpu"  # a GPU exchanges beside what it computes
        self.tells_apart = not self.gathers
        self.precision = torch.bfloat16 if options.weights == "bf16" else None

    def place(self, module: nn.Module, tables: Named) -> nn.Module:
        if self._short_of_memory(module):
            device.give_back_large_blocks()
        empty = any(tensor.is_meta for tensor in module.parameters())
        plan = copy.deepcopy(module) if empty else module
        if not empty:
            start_alike(chain(module.parameters(), module.buffers()), self.world)
        self._shard(module, tables)
        if empty:
            self._fill(module, cast(HasFirstValues, plan))
        return module

    def _short_of_memory(self, module: nn.Module) -> bool:
        """Whether the weights of blocks, freed when they are computed with, must go back to the system.

        Kept, they took twice as much as all else; given back, steps took one and a half times as long.
        """
        needed = ROOM * sum(tensor.nbytes for tensor in module.parameters())
        free, allowed = device.free_memory(self.world.device), device.allowed_memory()
        shared = None if free is None else free / self.world.local_size
        return any(amount is not None and amount < needed for amount in (shared, allowed))

    def _shard(self, module: nn.Module, tables: Named) -> None:
        pinned = self.world.device.type != "cpu"
        settings: dict[str, Any] = {
            "mesh": init_device_mesh(self.world.device.type, (self.world.size,)),
            "mp_policy": MixedPrecisionPolicy(DTYPES[self.options.weights], DTYPES[self.options.gradients]),
            "offload_policy": CPUOffloadPolicy(pinned) if self.options.cpu_offload else OffloadPolicy(),
            "ignored_params": set(tables.values()),
        }
        gather, scatter = Gather(self.world, module), Scatter(self.world)
        for part in (*blocks(module), module):
            reshard = None if part is module else self.options.reshard_after_forward
            sharded = fully_shard(part, reshard_after_forward=reshard, **settings)
            sharded.set_custom_all_gather(gather)
            sharded.set_custom_reduce_scatter(scatter)

    def _fill(self, module: nn.Module, plan: HasFirstValues) -> None:
        """Give a module without memory its shards of the first worker's first values, one whole tensor at a time."""
        module._apply(self._room)  # type: ignore[no-untyped-call]
        targets = dict(chain(module.named_parameters(), module.named_buffers()))
        with random_state_of_first(), torch.no_grad():
            for name, value in plan.first_values():
                copy_shard(targets.pop(name), value)
        if targets:
            raise TrainingError(f"the network gives no first value of {', '.join(targets)}: its class must yield all")

    def _room(self, tensor: Tensor) -> Tensor:
        """Memory for one that has none. What is not in shards is computed with where it lies."""
        offloaded = self.options.cpu_offload and isinstance(tensor, DTensor)
        return torch.empty_like(tensor, device="cpu" if offloaded else self.world.device)

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def random_state_of_first() -> Iterator[None]:
    """While entered, draw the numbers that the first worker draws; only there do they count as drawn."""
    own = torch.get_rng_state()
    first = own.clone()
    dist.broadcast(first, 0)
    torch.set_rng_state(first)
    try:
        yield
    finally:
        if dist.get_rank():
            torch.set_rng_state(own)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost lists of modules below `module` that have modules of their own.

    A list within such an element may hold what only some rows call (experts); and a layer in a list may be a mere place
    for weights that others read.
    """
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (element for element in child if any(element.children()))
        else:
            yield from blocks(child)
