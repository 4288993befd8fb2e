"""The figures that a cost model needs of a run, measured by a few of its steps on one worker with one thread."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from fastserve.distributed.cost import Work
from fastserve.distributed.fsdp import Fsdp, FsdpOptions, blocks
from fastserve.distributed.world import World, alone_in_group
from fastserve.training.activations import watching
from fastserve.training.groups import use_sparse_gradients
from fastserve.training.loop import TrainingRun
from fastserve.types import LongArray

TIMES = 7
"""Steps of each size: the median counts."""
PARTS = (1, 2, 4)
"""Steps are measured whole, and as each of so many workers would make them."""


def measure(run: TrainingRun) -> Work:
    """Measure `run`, which is used up by it: its weights have then made steps of no use."""
    torch.set_num_threads(1)
    batch = run.settings.recipe.batch
    plan = [rows for epoch in range(2) for rows in run.plan.epoch(epoch) if len(rows) == batch] or run.plan.epoch(0)
    points = [(max(1, batch // part), _seconds(run, plan, part)) for part in PARTS]
    per_row, fixed = np.polyfit([rows for rows, _ in points], [seconds for _, seconds in points], 1)
    tables = use_sparse_gradients(run.network)
    named = dict(run.network.named_parameters())
    dense = [p for name, p in named.items() if name not in tables and p.requires_grad]
    gathered = [_bytes(p for p in block.parameters() if p.requires_grad) for block in blocks(run.network)]
    copies = 2 if run.average.weights is None else 3  # the best weights, their average
    sharding = _sharding(run, plan) if dense else 0.0
    return Work(
        rows=batch,
        fixed=max(float(fixed), 0.0),
        per_row=max(float(per_row), 1e-9),
        dense=_bytes(dense),
        table_row=_travelling(run, plan[0], [named[name] for name in tables]) / batch,
        dense_state=_bytes(dense) * (copies + 1) + _optimizer_bytes(run),
        tables=_bytes(named[name] for name in tables),
        largest=max(gathered, default=_bytes(dense)),
        activations=_activations(run, plan[0]) / batch,
        blocks=len(gathered),
        in_blocks=sum(gathered),
        sharding=sharding,
    )


def _seconds(run: TrainingRun, plan: list[LongArray], part: int) -> float:
    times = [_step(run, plan[number % len(plan)][::part]) for number in range(TIMES + 1)]
    return statistics.median(times[1:])


def _step(run: TrainingRun, rows: LongArray) -> float:
    """Seconds of a step."""
    start = time.perf_counter()
    run.step(run.train.batch(rows))
    return time.perf_counter() - start


def _sharding(run: TrainingRun, plan: list[LongArray]) -> float:
    """Seconds of a step that fsdp takes in a group of one worker, above those of `run`: the two take turns."""
    with alone_in_group(run.device):
        sharded = TrainingRun(
            copy.deepcopy(run.network),
            run.task,
            run.settings,
            train=run.train,
            plan=run.plan,
            validation=run.validation,
            validation_batches=run.validation_batches,
            device=run.device,
            precision=run.computing.precision,
            folder=run.checkpoints.shelf.folder,
            strategy=Fsdp(FsdpOptions(), World(device=run.device)),
        )
        chosen = [plan[number % len(plan)][:: PARTS[-1]] for number in range(TIMES + 1)]
        more = [_step(sharded, rows) - _step(run, rows) for rows in chosen]
    return max(statistics.median(more[1:]), 0.0)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _optimizer_bytes(run: TrainingRun) -> int:
    """Of the state that optimizers keep of dense parameters."""
    kept = [part.optimizer.state_dict()["state"] for part in run.optimizers.parts if not part.tables]
    each = [state for states in kept for state in states.values()]
    return sum(v.numel() * v.element_size() for state in each for v in state.values() if isinstance(v, Tensor))


def _travelling(run: TrainingRun, rows: LongArray, tables: list[nn.Parameter]) -> float:
    """Bytes of the row-sparse gradients of a step: row numbers and values."""
    _gradients(run, rows)
    sparse = [table.grad for table in tables if table.grad is not None and table.grad.is_sparse]
    size = sum(g._indices().numel() * 8 + g._values().numel() * g._values().element_size() for g in sparse)
    for parameter in run.network.parameters():
        parameter.grad = None
    return float(size)


def _gradients(run: TrainingRun, rows: LongArray) -> None:
    inputs, targets = run.computing.to_device(run.train.batch(rows))
    run.objective(inputs, targets, len(rows)).backward()


def _activations(run: TrainingRun, rows: LongArray) -> float:
    """Bytes that the forward pass keeps for the backward pass."""
    with watching() as kept:
        _gradients(run, rows)
    for parameter in run.network.parameters():
        parameter.grad = None
    return float(kept.bytes)
