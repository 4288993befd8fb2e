"""The figures that a cost model needs of a run, measured by a few of its steps on one worker with one thread."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from fastserve.distributed.cost import Work
from fastserve.distributed.fsdp import Fsdp, FsdpOptions, blocks
from fastserve.distributed.world import World, alone_in_group
from fastserve.training.activations import watching
from fastserve.training.groups import use_sparse_gradients
from fastserve.training.loop import TrainingRun
from fastserve.types import FloatArray, LongArray

STEPS = 16
"""Batches that are measured: as short and as long as they come, since most of a step's time goes by its length."""
DRAWN = 4 * STEPS
"""Batches whose lengths are looked at."""
UNDISTURBED = 0.9
"""Share of the steps that count: the slowest had to wait for something else on the machine."""
PARTS = (1, 2, 4)
"""Steps are measured whole, and as each of so many workers would make them."""
CROWDED = 2
"""The part of a step that is measured beside others."""
MEDIAN_SQUARE = 0.6745
"""Of a normal distribution, the median distance from its mean in standard deviations: a few outliers do not count."""


def measure(run: TrainingRun) -> Work:
    """Measure `run`, which is used up by it: its weights have then made steps of no use."""
    torch.set_num_threads(1)
    batches = typical_batches(run)
    _step(run, batches[-1])
    twice = np.stack([_times(run, batches, PARTS) for _ in range(2)])
    seconds = [_undisturbed(times) for times in twice.min(0).T]
    points = list(zip([max(1, len(batches[0]) // part) for part in PARTS], seconds, strict=True))
    per_row, fixed = np.polyfit([rows for rows, _ in points], [seconds for _, seconds in points], 1)
    tables = use_sparse_gradients(run.network)
    named = dict(run.network.named_parameters())
    dense = [p for name, p in named.items() if name not in tables and p.requires_grad]
    gathered = [_bytes(p for p in block.parameters() if p.requires_grad) for block in blocks(run.network)]
    copies = 2 if run.average.weights is None else 3  # the best weights, their average
    return Work(
        rows=len(batches[0]),
        fixed=max(float(fixed), 0.0),
        per_row=max(float(per_row), 1e-9),
        dense=_bytes(dense),
        table_row=_travelling(run, batches[0], [named[name] for name in tables]) / len(batches[0]),
        dense_state=_bytes(dense) * (copies + 1) + _optimizer_bytes(run),
        tables=_bytes(named[name] for name in tables),
        largest=max(gathered, default=_bytes(dense)),
        activations=_activations(run, batches[0]) / len(batches[0]),
        blocks=len(gathered),
        in_blocks=sum(gathered),
        sharding=_sharding(run, batches) if dense else 0.0,
        jitter=_jitter(twice[:, :, -1]),
    )


def typical_batches(run: TrainingRun) -> list[LongArray]:
    """The rows of whole steps, from short to long ones."""
    epochs = itertools.chain.from_iterable(run.plan.epoch(number) for number in range(2))
    drawn = list(itertools.islice((rows for rows in epochs if len(rows) == run.settings.recipe.batch), DRAWN))
    drawn = drawn or run.plan.epoch(0)[:1]
    drawn.sort(key=lambda rows: sum(len(ragged.values) for ragged in run.train.batch(rows).inputs.values()))
    return [drawn[int(len(drawn) * (place + 0.5) / STEPS)] for place in range(STEPS)]


def _times(run: TrainingRun, batches: Sequence[LongArray], parts: Sequence[int]) -> FloatArray:
    """float (batches, parts): seconds of a step on every `part`-th row of each batch."""
    return np.array([[_step(run, rows[::part]) for part in parts] for rows in batches])


def _jitter(twice: FloatArray) -> float:
    """The relative standard deviation of the seconds that equal steps take. twice: float (2, steps)."""
    first, second = twice
    differences = (first - second) / twice.mean(0)
    return float(np.sqrt(np.median(differences**2) / 2) / MEDIAN_SQUARE)


def crowding(run: TrainingRun, beside: Callable[[], AbstractContextManager[None]]) -> float:
    """Times as long as alone a step takes while what `beside` starts computes as well; measured before, amid, after."""
    batches = typical_batches(run)
    before = _undisturbed(_times(run, batches, [CROWDED])[:, 0])
    with beside():
        amid = _undisturbed(_times(run, batches, [CROWDED])[:, 0])
    after = _undisturbed(_times(run, batches, [CROWDED])[:, 0])
    return max(2 * amid / (before + after), 1.0)


def _undisturbed(times: FloatArray) -> float:
    return float(np.sort(times)[: max(1, int(len(times) * UNDISTURBED))].mean())


def _step(run: TrainingRun, rows: LongArray) -> float:
    """Seconds of a step."""
    start = time.perf_counter()
    run.step(run.train.batch(rows))
    return time.perf_counter() - start


def _sharding(run: TrainingRun, batches: Sequence[LongArray]) -> float:
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
        chosen = [rows[:: PARTS[-1]] for rows in batches]
        _step(sharded, chosen[0])
        more = [_step(sharded, rows) - _step(run, rows) for rows in chosen]
    return max(statistics.median(more), 0.0)


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
