"""How much of a step fits the memory: found out before the first step, by the largest one.

On a GPU pieces of it are tried, to the end of the backward pass. On a processor, where too much ends the process, what
a small piece keeps for the backward pass is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastserve import device
from fastserve.errors import TrainingError
from fastserve.log import say
from fastserve.training.activations import watching
from fastserve.training.computing import Computing
from fastserve.training.optimizers import Optimizers
from fastserve.training.plans import HasSizes, Plan, Rows, largest_of, sizes_of
from fastserve.types import LongArray

USED = 0.9
"""Of what is free. The rest is for what is not foreseen."""
PASSING = 1.3
"""A step takes so many times what it keeps for the backward pass: its results on the way are there besides."""
SAMPLE = 8
"""On a processor one row in so many is computed."""
MOMENTS = {"AdamW": 2, "RowAdam": 2, "Muon": 1}
"""Numbers that an optimizer makes for each weight in its first step."""


def micro_batch(computing: Computing, optimizers: Optimizers, data: Rows, plan: Plan) -> int:
    """Rows (or what `plan.sizes` counts) that a worker should compute at once; 0: all of its part of a step.

    The same on all workers, which must all call. Weights, random numbers and statistics are afterwards as before.
    TrainingError where a single row does not fit.
    """
    world = computing.world
    free = device.free_memory(computing.device)
    rows = largest_of(plan)
    part = world.part(rows).rows
    sizes = sizes_of(plan, part)
    trial = Trial(computing, data, part, sizes)
    later = made_later(computing, optimizers)
    with unchanged(computing, optimizers):
        if computing.device.type == "cuda":
            found = trial.on_gpu(later)
        else:
            share = None if free is None else free / world.local_size
            found = trial.on_processor(later, share)
    least = -world.most([-(found or math.inf)])[0]
    micro = 0 if math.isinf(least) else int(least)
    if micro and world.leads:
        unit = "tokens" if isinstance(plan, HasSizes) else "rows"
        say(f"memory: {computing.device} takes {micro:,} {unit} of a step at once (train.micro_batch)")
    return micro


@dataclass(frozen=True, slots=True)
class Trial:
    """A worker's part of the largest step. sizes: of its rows, in the units of a micro batch."""

    computing: Computing
    data: Rows
    rows: LongArray
    sizes: LongArray

    def on_processor(self, later: int, free: float | None) -> int:
        """The units that fit, 0 for all. free: bytes, None where nobody knows."""
        largest = np.argsort(self.sizes, kind="stable")[-max(1, len(self.rows) // SAMPLE) :]
        with watching() as kept:
            self._pass(self.rows[largest], backward=self.computing.strategy.gathers)
        each = PASSING * kept.bytes / float(self.sizes[largest].sum())
        if free is None:
            return 0
        room, total = USED * free - later, int(self.sizes.sum())
        if each * total <= room:
            return 0
        fits = int(room / each) if room > 0 else 0
        if fits < int(self.sizes.max()):
            raise TrainingError(_too_small(later + each * float(self.sizes.max()), free))
        return fits

    def on_gpu(self, later: int) -> int:
        """The units that fit, 0 for all."""
        number, place = 1, self.computing.device
        while True:
            count = -(-len(self.rows) // number)
            needed = self._peak(self.rows[:count])
            free = device.free_memory(place) or 0
            if needed is not None and needed + later <= USED * free:
                return 0 if number == 1 else int(self.sizes[:count].sum())
            if count == 1:
                raise TrainingError(_too_small(math.inf if needed is None else needed + later, free))
            number *= 2

    def _peak(self, rows: LongArray) -> int | None:
        """Bytes that a pass over the rows takes at most, above what there is; None: more than there are."""
        place = self.computing.device
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
        try:
            self._pass(rows, backward=True)
        except torch.OutOfMemoryError:
            return None
        finally:
            torch.cuda.synchronize(place)
        return torch.cuda.max_memory_allocated(place) - before

    def _pass(self, rows: LongArray, *, backward: bool) -> None:
        """Forward and backward, without the hooks that let workers meet where the forward pass needs none."""
        computing = self.computing
        inputs, targets = computing.to_device(self.data.batch(rows))
        with computing.autocast():
            loss: Tensor = computing.objective(inputs, targets, len(rows))
        if not backward:
            return
        if computing.strategy.gathers:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            trained = [p for p in computing.objective.parameters() if p.requires_grad]
            torch.autograd.grad(loss, trained, allow_unused=True)


def made_later(computing: Computing, optimizers: Optimizers) -> int:
    """Bytes that training will take besides: gradients, what optimizers remember, and the best weights."""
    network = computing.objective.network
    made = sum(map(_bytes, network.parameters()))  # a copy of the best
    for part in optimizers.parts:
        for group in part.optimizer.param_groups:
            each = sum(_bytes(p) for p in group["params"] if not any(p is table for table in part.tables))
            made += each * (MOMENTS.get(type(part.optimizer).__name__, 0) + 1)
            made += sum(map(_bytes, part.tables)) * MOMENTS.get(type(part.optimizer).__name__, 0)
    return made


def _bytes(tensor: Any) -> int:
    """Of a tensor, or of this worker's shard of it."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(local.numel() * local.element_size())


@contextmanager
def unchanged(computing: Computing, optimizers: Optimizers) -> Iterator[None]:
    """While entered the network is in training; afterwards random numbers, buffers and gradients are as before."""
    place, module = computing.device, computing.objective
    was_training = module.training
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    devices = [place] if place.type == "cuda" else []
    module.train()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        module.train(was_training)
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
        optimizers.forget_gradients()


def _too_small(needed: float, free: float) -> str:
    amount = "more than there is" if math.isinf(needed) else f"{needed / 1e9:,.2f} GB"
    return (
        f"training with one row at a time would take {amount}, and {free / 1e9:,.2f} GB are free: take a smaller "
        "network or shorter texts, train.checkpoint_activations=true, or distributed.strategy=fsdp on more workers "
        "(train.micro_batch=1 tries it all the same)"
    )
