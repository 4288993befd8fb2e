"""The one training loop: every network and every task runs through `TrainingRun.events`.

It yields what happened and knows nobody who watches. Its whole state is in `TrainingRun.state()`, and the order of the
rows is a function of (seed, epoch), so that a run that is killed at any instant goes on to the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastserve.distributed.checkpoints import Checkpoints, Found, own_group
from fastserve.distributed.places import Place, beside, into, optimizer_state
from fastserve.distributed.strategy import Alone, Strategy
from fastserve.distributed.world import ALONE, Part, World
from fastserve.errors import StorageError, TrainingError
from fastserve.log import warn
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.base import Task
from fastserve.training.ahead import ahead
from fastserve.training.events import Checkpointed, Evaluated, Event, Finished, RateReduced, Resumed, Stepped
from fastserve.training.objective import Objective
from fastserve.training.optimizers import Optimizers, use_sparse_gradients
from fastserve.training.settings import Settings
from fastserve.types import Batch, FloatArray, LongArray

REDUCTION = 0.5
"""What the learning rate is multiplied by on a plateau."""

WRITE_TIMEOUTS = 10
"""How many timeouts of an exchange the slowest worker may take to write its part of a checkpoint."""
ASKED_EVERY = 8
"""Steps after which several workers ask their leader whether a checkpoint is due."""


class Rows(Protocol):
    """Encoded rows that can be read in any order (`data.store.Store`)."""

    def __len__(self) -> int: ...

    def batch(self, rows: LongArray) -> Batch: ...


class Plan(Protocol):
    """Which rows make the steps of an epoch, on all workers together (`data.batches.BatchPlan`)."""

    def epoch(self, number: int) -> list[LongArray]: ...


@runtime_checkable
class HasCounts(Protocol):
    """A plan of rows that do not count alike in the mean loss of a step (each by its tokens, say)."""

    def counts(self, rows: LongArray) -> FloatArray:
        """float (B,): how much each row counts. The loss of rows in which nothing counts must be 0, with a gradient."""
        ...


@dataclass(slots=True)
class Progress:
    """How far the run is, and what it has found."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_step: int = 0
    best_value: float | None = None
    evaluations_without_gain: int = 0
    plateau: int = 0
    rate_factor: float = 1.0
    finished: str = ""
    """Why the run is over; empty while it goes on."""

    @property
    def over(self) -> bool:
        return self.finished != ""


class TrainingRun:
    """A network, its data and its optimizer, and where they are in the run.

    precision: what matrix products are computed in, unless the strategy decides it; weights stay float32.
    folder: where checkpoints go.
    world, strategy: the workers of the run, each of which has a `TrainingRun`, and how they share it.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        settings: Settings,
        *,
        train: Rows,
        plan: Plan,
        validation: Rows,
        validation_batches: list[LongArray],
        device: torch.device,
        precision: torch.dtype,
        folder: Path,
        world: World = ALONE,
        strategy: Strategy | None = None,
    ) -> None:
        empty = any(tensor.is_meta for tensor in network.parameters())  # then the strategy gives it its first values
        self.network = network if empty else network.to(device)
        self.task = task
        self.world, self.strategy = world, strategy or Alone()
        self.objective = Objective(self.network, task)
        tables = {f"network.{name}" for name in use_sparse_gradients(network)}
        named = {name: p for name, p in self.objective.named_parameters() if name in tables}
        self.placed = self.strategy.place(self.objective, named)
        self.settings = settings
        self.train, self.plan = train, plan
        self.validation, self.validation_batches = validation, validation_batches
        self.device, self.precision = device, self.strategy.precision or precision
        with world.doing("meeting"):
            self.checkpoints = Checkpoints(folder, own_group(WRITE_TIMEOUTS * world.timeout_seconds))
        self.optimizers = Optimizers(network, settings.recipe, self._reduce)
        self.progress = Progress()
        self.average = self._copy() if settings.recipe.average else None
        self._not_averaged = 0
        """Steps since the average took up the weights."""
        self.best: dict[str, Tensor] = {}

    # The run, as it reads

    def events(self) -> Iterator[Event]:
        """Train to the end, from the newest checkpoint where there is one. The network then has the best weights."""
        at = self.progress
        if self.restore():
            self.world.pulse.stepped(at.step)
            yield Resumed(at.step, at.epoch)
        self._saved = time.monotonic()
        try:
            while not self.progress.over:
                yield from self._epoch()
        finally:
            if self.world.alone or self.progress.over:  # else others may be gone, and what is being written never ends
                self._finish_checkpoint()
        self.network.load_state_dict(self.best)
        self.network.eval()
        yield Finished(at.step, at.epoch, at.finished, at.best_step)

    def _epoch(self) -> Iterator[Event]:
        """What is left of the current epoch."""
        at = self.progress
        parts = [self.part(rows) for rows in self.plan.epoch(at.epoch)[at.batch :]]
        for part, batch in zip(parts, self._batches([part.rows for part in parts]), strict=True):
            yield self.step(batch, part)
            if at.step % self.settings.evaluate_every == 0:
                yield from self.evaluate()
            if at.over:
                return
            if self._checkpoint_due():
                yield self.save()
        at.epoch, at.batch = at.epoch + 1, 0
        if at.epoch >= self.settings.recipe.epochs:
            yield from self._last_evaluation()

    def part(self, rows: LongArray) -> Part:
        """What this worker computes of a step with these rows."""
        return self.world.part(rows, self.plan.counts(rows) if isinstance(self.plan, HasCounts) else None)

    def _batches(self, plan: list[LongArray]) -> Iterator[Batch]:
        """Read ahead where another device computes; where the cores do, a second thread only gets in their way."""
        return ahead(self.train.batch, plan) if self.device.type == "cuda" else map(self.train.batch, plan)

    def _checkpoint_due(self) -> bool:
        """Alike on every worker; only where the state of the run is whole."""
        if not (self.optimizers.at_rest and self.strategy.at_rest):
            return False
        seconds = self.settings.checkpoint_seconds
        if not seconds or self.world.alone:
            return time.monotonic() - self._saved >= seconds
        asked = self.progress.step % ASKED_EVERY == 0 or not self.strategy.shares_optimizer  # which is seldom at rest
        return asked and bool(self.world.told(time.monotonic() - self._saved >= seconds))

    def step(self, batch: Batch, part: Part | None = None) -> Stepped:
        """One optimizer step. part: what this worker computes of it, where there are others."""
        at, world = self.progress, self.world
        part = part or Part(batch.rows, len(batch))
        inputs, targets = self._to_device(batch)
        self.objective.train()
        with world.doing("forward") if self.strategy.gathers else world.pulse.during("forward"), self._autocast():
            loss = self.placed(inputs, targets, self.strategy.rows(part))
        with world.doing("backward"):
            (loss * self.strategy.weight(part)).backward()
            value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {at.step} (epoch {at.epoch + 1}): lower train.learning_rate "
                f"(now {self.settings.recipe.learning_rate:g}) or use train.precision=fp32"
            )
        rate = self.settings.rate_at(at.step) * at.rate_factor
        with world.pulse.during("update"):
            self.optimizers.step(rate)
            self.strategy.after_step()
        at.step, at.batch = at.step + 1, at.batch + 1
        self._not_averaged += 1
        self._update_average()
        world.pulse.stepped(at.step)
        items = sum(len(ragged.values) for ragged in batch.inputs.values()) * part.whole // len(batch)
        learning_rate = rate * self.settings.recipe.learning_rate
        return Stepped(at.step, at.epoch, value, learning_rate, part.whole, items, padding(batch))

    def evaluate(self) -> Iterator[Event]:
        """Measure on the validation rows; keep the weights if they are the best; decide whether to go on."""
        at, settings = self.progress, self.settings
        self.strategy.settle()
        self._update_average()
        with self._averaged():
            with self.world.pulse.during("evaluation"):
                scores, targets = self.scores(self.validation, self.validation_batches)
            metrics = self.task.quick_metrics(scores, targets)
            value = metrics[settings.metric] * (1 if settings.more_is_better else -1)
            gain = at.best_value is None or value > at.best_value
            if gain or settings.recipe.keep == "last":
                self.best, at.best_step = self._copy(), at.step
            at.best_value = value if gain else at.best_value
        at.evaluations_without_gain = 0 if gain else at.evaluations_without_gain + 1
        at.plateau = 0 if gain else at.plateau + 1
        yield Evaluated(at.step, at.epoch, metrics, gain)
        patience = settings.recipe.early_stopping
        if patience and at.evaluations_without_gain >= patience:
            at.finished = f"no better {settings.metric} in {at.evaluations_without_gain} evaluations"
        elif settings.recipe.schedule == "plateau" and at.plateau >= settings.plateau_patience:
            at.plateau, at.rate_factor = 0, at.rate_factor * REDUCTION
            yield RateReduced(at.step, at.epoch, at.rate_factor)

    def _last_evaluation(self) -> Iterator[Event]:
        if self.progress.step % self.settings.evaluate_every:
            yield from self.evaluate()
        self.progress.finished = self.progress.finished or "all epochs done"

    def scores(self, data: Rows, batches: list[LongArray]) -> tuple[FloatArray, npt.NDArray[Any]]:
        """What the task keeps of each row (N, outputs), and targets, of `batches` in the order of the row numbers.

        Workers take turns with the batches and all get the whole.
        """
        self.objective.eval()
        found = []
        no_gradients = torch.inference_mode if self.world.alone else torch.no_grad  # weights in shards want the second
        with no_gradients(), self._autocast():
            for rows, counts in self.world.turns(batches):
                self.world.pulse.turns += 1
                batch = data.batch(rows)
                scores = self.objective(self._to_device(batch)[0]).float().cpu().numpy()
                kept = slice(None) if counts else slice(0)
                found.append((scores[kept], batch.targets[kept], rows[kept]))
        scores, targets, order = (self.world.gather(np.concatenate(column)) for column in zip(*found, strict=True))
        back = np.argsort(order, kind="stable")
        return scores[back], targets[back]

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict, whole and on the processor of the leader; the others help and get nothing."""
        whole = ((name, self.strategy.whole(value)) for name, value in self.network.state_dict().items())
        return {name: value.cpu() for name, value in whole if self.world.leads}

    # State

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, alike on all workers; with `own` it is the whole state."""
        return {
            "progress": {name: getattr(self.progress, name) for name in Progress.__slots__},
            "network": self.network.state_dict(),
            "optimizers": self.optimizers.state() if self.strategy.shares_optimizer else {},
            "strategy": self.strategy.state(),
            "average": self.average or {},
            "best": self.best,
        }

    def own(self) -> dict[str, Any]:
        """What the next step depends on and other workers have otherwise."""
        own: dict[str, Any] = {"random": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["random_cuda"] = torch.cuda.get_rng_state(self.device)
        if not self.strategy.shares_optimizer:
            own["optimizers"] = self.optimizers.state()
        return own

    def save(self) -> Checkpointed:
        """Copy the state; it is written while training goes on. One that is not written is missed, no more."""
        with self.world.doing("checkpoint"):
            self._finish_checkpoint()
            self.checkpoints.save(self.progress.step, self.state(), own=self.own())
        self._saved = time.monotonic()
        return Checkpointed(self.progress.step, self.progress.epoch)

    def _finish_checkpoint(self) -> None:
        try:
            self.checkpoints.wait()
        except StorageError as error:
            warn(f"{error}. The run goes on; if it is killed, it resumes at the checkpoint before")

    def restore(self) -> bool:
        """Take up the newest whole checkpoint; False where there is none."""
        found = self.checkpoints.newest()
        if found is None:
            return False
        weights = self.network.state_dict()
        parts = [
            optimizer_state(part.optimizer, "optimizers", "parts", i) for i, part in enumerate(self.optimizers.parts)
        ]
        state, own = found.load(into({"network": weights}), *parts, beside(weights, "average"), beside(weights, "best"))
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
        self.network.load_state_dict(state["network"])
        self.optimizers.restore(state["optimizers"] or self._own_optimizers(found, own, parts))
        self.strategy.restore(state["strategy"])
        self.average = state["average"] or None
        self.best = state["best"]
        if self.world.rank >= found.workers:
            return True  # what is there is another worker's own, and two of them must not drop the same words
        torch.set_rng_state(own["random"])
        if self.device.type == "cuda" and "random_cuda" in own:
            torch.cuda.set_rng_state(own["random_cuda"], self.device)
        return True

    def _own_optimizers(self, found: Found, own: dict[str, Any], parts: list[Place]) -> dict[str, Any]:
        """Optimizers' states of a run whose workers had one each: where all shall have the same, that of the first."""
        state: dict[str, Any] = found.of_first(*parts) if self.strategy.shares_optimizer else own
        return state["optimizers"]  # type: ignore[no-any-return]

    # Parts of a step

    def _reduce(self, tables: Iterable[nn.Parameter]) -> None:
        with self.world.doing("rows"):
            self.strategy.reduce(tables)

    def _to_device(self, batch: Batch) -> tuple[dict[str, RaggedTensor], Tensor]:
        inputs = {name: RaggedTensor.from_ragged(ragged).to(self.device) for name, ragged in batch.inputs.items()}
        return inputs, torch.from_numpy(batch.targets).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def _update_average(self) -> None:
        """Where all workers have the same weights, so that they have the same average."""
        if self.average is None or not self.strategy.at_rest:
            return
        decay = min(self.settings.recipe.average, (1 + self.progress.step) / (10 + self.progress.step))
        decay, self._not_averaged = decay**self._not_averaged, 0
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _averaged(self) -> _Swapped:
        return _Swapped(self.network, self.average)


def padding(batch: Batch) -> float:
    """The share of a batch of texts that no text fills, when all are made as long as the longest."""
    tokens = batch.inputs.get("tokens")
    longest = int(tokens.lengths.max()) if tokens is not None else 0
    return 1 - len(tokens.values) / (longest * len(batch)) if tokens is not None and longest else 0.0


class _Swapped:
    """While entered, the network has the averaged weights (or its own where no average is kept)."""

    def __init__(self, network: nn.Module, weights: dict[str, Tensor] | None) -> None:
        self.network, self.weights = network, weights

    def __enter__(self) -> None:
        if self.weights is not None:
            self.own = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self.weights)

    def __exit__(self, *_: object) -> None:
        if self.weights is not None:
            self.network.load_state_dict(self.own)
