"""The one training loop: every network and every task runs through `TrainingRun.events`.

It yields what happened and knows nobody who watches. Its whole state is in `TrainingRun.state()`, and the order of the
rows is a function of (seed, epoch), so that a run that is killed at any instant goes on to the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastserve.distributed.checkpoints import Checkpoints, Found, own_group
from fastserve.distributed.places import Place, beside, into, optimizer_state
from fastserve.distributed.strategy import Alone, Strategy
from fastserve.distributed.world import ALONE, Part, World
from fastserve.errors import StorageError
from fastserve.log import warn
from fastserve.tasks.base import Task
from fastserve.training.activations import checkpoint_activations
from fastserve.training.ahead import ahead
from fastserve.training.average import Average
from fastserve.training.average import copied as weights_of
from fastserve.training.computing import Computing
from fastserve.training.events import (
    Checkpointed,
    Evaluated,
    Event,
    Finished,
    RateReduced,
    Resumed,
    Skipped,
    Stepped,
    WentBack,
)
from fastserve.training.fit import micro_batch
from fastserve.training.groups import use_sparse_gradients
from fastserve.training.guard import Guard
from fastserve.training.muon import whole as whole_tensor
from fastserve.training.objective import Objective
from fastserve.training.optimizers import Optimizers
from fastserve.training.parts import Piece, pieces, whole
from fastserve.training.plans import Plan, Rows, counts_of, padding, sizes_of, some
from fastserve.training.progress import Progress
from fastserve.training.recovery import Recovery, copied
from fastserve.training.row_optimizers import add_up
from fastserve.training.settings import Settings
from fastserve.types import Batch, FloatArray, LongArray

REDUCTION = 0.5
"""What the learning rate is multiplied by on a plateau."""

WRITE_TIMEOUTS = 10
"""How many timeouts of an exchange the slowest worker may take to write its part of a checkpoint."""
ASKED_EVERY = 8
"""Steps after which several workers ask their leader whether a checkpoint is due."""


class TrainingRun:
    """A network, its data and its optimizer, and where they are in the run.

    precision: what matrix products are computed in, unless the strategy decides it; weights stay float32.
    folder: where checkpoints go.
    world, strategy: the workers of the run, each of which has a `TrainingRun`, and how they share it.
    show: what the network writes, for the event of an evaluation.
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
        show: Callable[[nn.Module], list[dict[str, str]]] | None = None,
    ) -> None:
        self.show = show
        if settings.checkpoint_activations:
            checkpoint_activations(network)
        empty = any(tensor.is_meta for tensor in network.parameters())  # then the strategy gives it its first values
        self.network = network if empty else network.to(device)
        self.task = task
        self.world, self.strategy = world, strategy or Alone()
        self.objective = Objective(self.network, task)
        tables = {f"network.{name}" for name in use_sparse_gradients(network)}
        named = {name: p for name, p in self.objective.named_parameters() if name in tables}
        self.computing = Computing(
            self.objective,
            self.strategy.place(self.objective, named),
            self.strategy,
            world,
            device,
            self.strategy.precision or precision,
            compiled=settings.compiles(device.type),
        )
        self.settings = settings
        self.train, self.plan = train, plan
        self.validation, self.validation_batches = validation, some(validation_batches, settings.evaluate_rows)
        self.device = device
        with world.doing("meeting"):
            self.checkpoints = Checkpoints(folder, own_group(WRITE_TIMEOUTS * world.timeout_seconds))
        self.optimizers = Optimizers(network, settings.recipe, self._reduce, self.computing.precision)
        self.guard = Guard(settings.recipe.spike)
        self.recovery = Recovery(settings, self.checkpoints, self.guard, world)
        self.progress = Progress()
        self.average = Average(self.network, settings.recipe.average)
        self.best: dict[str, Tensor] = {}
        self._in_pieces = False
        """Whether the last step was computed in several pieces."""

    # The run, as it reads

    def events(self) -> Iterator[Event]:
        """Train to the end, from the newest checkpoint where there is one. The network then has the best weights."""
        at = self.progress
        self.recovery.begin()
        fitting = self.settings.micro_batch or micro_batch(self.computing, self.optimizers, self.train, self.plan)
        self.computing.begin()
        if self.restore():
            self.world.pulse.stepped(at.step)
            yield Resumed(at.step, at.epoch)
        else:
            self.recovery.remember_start(self.state(), self.own())
        at.micro_batch = min((number for number in (fitting, at.micro_batch) if number), default=0)
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
        """What is left of the current epoch, or what comes before the run goes back."""
        at = self.progress
        steps = self.plan.epoch(at.epoch)
        left = steps[at.batch :]
        parts = [self.part(rows) for rows in left]
        for rows, part, batch in zip(left, parts, self._batches([part.rows for part in parts]), strict=True):
            if at.step in self.recovery.decisions.skipped:
                yield self.skip(part)
            else:
                yield self.step(batch, part, self._pieces(rows, part))
            ended = self._ended(len(steps))
            evaluates = bool(ended) or at.step % self.settings.evaluate_every == 0
            if evaluates:
                self.strategy.settle()
            broken, due = self._vote(evaluates)
            if broken:
                yield self.go_back()
                return
            if evaluates:
                yield from self.evaluate()
            at.finished = at.finished or ended
            if at.over:
                return
            if due and self._finite():
                yield self.save()
        at.epoch, at.batch = at.epoch + 1, 0

    def _ended(self, steps: int) -> str:
        """Why the last step was that, or nothing. steps: of the epoch."""
        at, most = self.progress, self.settings.max_steps
        if at.batch == steps and at.epoch + 1 >= self.settings.recipe.epochs:
            return "all epochs done"
        return "train.max_steps done" if most is not None and at.step >= most else ""

    def part(self, rows: LongArray) -> Part:
        """What this worker computes of a step with these rows."""
        return self.world.part(rows, counts_of(self.plan, rows))

    def _pieces(self, rows: LongArray, part: Part) -> list[Piece]:
        """How this worker computes its part of a step with these rows."""
        most = self.progress.micro_batch
        if not most:
            return whole(part)
        return pieces(part, sizes_of(self.plan, rows), counts_of(self.plan, rows), most, self.world)

    def _batches(self, plan: list[LongArray]) -> Iterator[Batch]:
        """Read ahead where another device computes; where the cores do, a second thread only gets in their way."""
        return ahead(self.train.batch, plan) if self.device.type == "cuda" else map(self.train.batch, plan)

    def _vote(self, evaluates: bool) -> tuple[bool, bool]:
        """Whether a worker has seen the run diverge, and whether a checkpoint is due: alike on every worker.

        Only now and then, where they must ask each other; and where the state of the run is whole.
        """
        wanted = time.monotonic() - self._saved >= self.settings.checkpoint_seconds
        at_rest = self.optimizers.at_rest and self.strategy.at_rest
        if self.strategy.shares_optimizer:
            often = self.world.alone or not self.settings.checkpoint_seconds
            asked = evaluates or often or self.progress.step % ASKED_EVERY == 0
        else:
            asked = self.strategy.at_rest  # which is seldom
        if not asked:
            return False, False
        mine = (self.world.leads and wanted, self.guard.broken is not None, not self.guard.calm)
        due, broken, restless = self.world.most([float(each) for each in mine])
        return bool(broken), at_rest and bool(due) and not restless

    def _finite(self) -> bool:
        """Whether the weights are numbers, before they are kept as good ones."""
        weights = [p.detach() for p in self.network.parameters() if p.is_floating_point()]
        shards = [weight for weight in weights if hasattr(weight, "to_local")]
        rest = [weight for weight in weights if not hasattr(weight, "to_local")]  # tables, which no worker shares out
        norms = [nn.utils.get_total_norm(group, foreach=True) for group in (shards, rest) if group]
        return all(bool(whole_tensor(norm).isfinite()) for norm in norms)

    def step(self, batch: Batch, part: Part | None = None, pieces: Sequence[Piece] = ()) -> Stepped:
        """One optimizer step. part: what this worker computes of it; pieces: the same as it is computed."""
        at, world = self.progress, self.world
        part = part or Part(batch.rows, len(batch))
        self._in_pieces = len(pieces) > 1
        value = self.computing.gradients(batch, pieces or whole(part))
        rate = self.settings.rate_at(at.step) * at.rate_factor * self.recovery.decisions.factor
        with world.pulse.during("update"):
            norm = self.optimizers.clip()
            self.guard.see(at.step, value, 0.0 if norm is None else norm.item())
            self.optimizers.step(rate)
            self.strategy.after_step()
        at.step, at.batch = at.step + 1, at.batch + 1
        self.average.steps += 1
        self._update_average()
        world.pulse.stepped(at.step)
        items = sum(len(ragged.values) for ragged in batch.inputs.values()) * part.whole // len(batch)
        learning_rate = rate * self.settings.recipe.learning_rate
        return Stepped(at.step, at.epoch, value, learning_rate, part.whole, items, padding(batch))

    def skip(self, part: Part) -> Skipped:
        """A step without its update."""
        at = self.progress
        at.step, at.batch = at.step + 1, at.batch + 1
        self.world.pulse.stepped(at.step)
        return Skipped(at.step, at.epoch, part.whole)

    def go_back(self) -> WentBack:
        """Take up the last good state. TrainingError where that is not wanted, or has not helped."""
        at, recovery = self.progress, self.recovery
        with self.world.doing("checkpoint"):
            self._finish_checkpoint()
            broken = recovery.decide()
            found = recovery.checkpoint()
            if found is not None:
                self._load(found)
            elif recovery.start is not None:
                self._take_up(*copied(recovery.start))
        self.optimizers.forget_gradients()
        self._saved = time.monotonic()
        self.world.pulse.stepped(at.step)
        skipped = broken.step in recovery.decisions.skipped
        return WentBack(at.step, at.epoch, str(broken), broken.step, skipped, recovery.decisions.factor)

    def evaluate(self) -> Iterator[Event]:
        """Measure on the validation rows; keep the weights if they are the best; decide whether to go on."""
        at, settings = self.progress, self.settings
        self.strategy.settle()
        self._update_average()
        with self.average:
            with self.world.pulse.during("evaluation"):
                scores, targets = self.scores(self.validation, self.validation_batches)
                samples = self._shown()
            metrics = self.task.quick_metrics(scores, targets)
            value = metrics[settings.metric] * (1 if settings.more_is_better else -1)
            gain = at.best_value is None or value > at.best_value
            if gain or settings.recipe.keep == "last":
                self.best, at.best_step = weights_of(self.network), at.step
            at.best_value = value if gain else at.best_value
        at.evaluations_without_gain = 0 if gain else at.evaluations_without_gain + 1
        at.plateau = 0 if gain else at.plateau + 1
        yield Evaluated(at.step, at.epoch, metrics, gain, samples)
        patience = settings.recipe.early_stopping
        if patience and at.evaluations_without_gain >= patience:
            at.finished = f"no better {settings.metric} in {at.evaluations_without_gain} evaluations"
        elif settings.recipe.schedule == "plateau" and at.plateau >= settings.plateau_patience:
            at.plateau, at.rate_factor = 0, at.rate_factor * REDUCTION
            yield RateReduced(at.step, at.epoch, at.rate_factor)

    def scores(
        self, data: Rows, batches: list[LongArray], *, exact: bool = False
    ) -> tuple[FloatArray, npt.NDArray[Any]]:
        """What the task keeps of each row (N, outputs), and targets, of `batches` in the order of the row numbers.

        Workers take turns with the batches and all get the whole. exact: in float32, in which a model is loaded; where
        the strategy itself rounds the weights, they stay rounded.
        """
        return self.computing.all_scores(data, batches, exact=exact and self.strategy.precision is None)

    def _shown(self) -> list[dict[str, str]]:
        """Samples for the event of an evaluation, of a network that the leader has as a whole."""
        in_shards = any(hasattr(parameter, "full_tensor") for parameter in self.network.parameters())
        return [] if self.show is None or in_shards or not self.world.leads else self.show(self.network)

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
            "average": self.average.weights or {},
            "best": self.best,
        }

    def own(self) -> dict[str, Any]:
        """What the next step depends on and other workers have otherwise."""
        own: dict[str, Any] = {"random": torch.get_rng_state(), "losses": list(self.guard.losses)}
        if self.device.type == "cuda":
            own["random_cuda"] = torch.cuda.get_rng_state(self.device)
        if not self.strategy.shares_optimizer:
            own["optimizers"] = self.optimizers.state()
        return own

    def save(self) -> Checkpointed:
        """Copy the state; it is written while training goes on. One that is not written is missed, no more."""
        with self.world.doing("checkpoint"):
            if self._finish_checkpoint():
                self.recovery.start = None
            self.checkpoints.save(self.progress.step, self.state(), own=self.own())
        self._saved = time.monotonic()
        return Checkpointed(self.progress.step, self.progress.epoch)

    def _finish_checkpoint(self) -> bool:
        """Wait for what is being written; whether there is a checkpoint that this process wrote."""
        try:
            return self.checkpoints.wait()
        except StorageError as error:
            warn(f"{error}. The run goes on; if it is killed, it resumes at the checkpoint before")
            return False

    def restore(self) -> bool:
        """Take up the newest whole checkpoint; False where there is none."""
        found = self.checkpoints.newest()
        if found is not None:
            self._load(found)
        return found is not None

    def _load(self, found: Found) -> None:
        weights = self.network.state_dict()
        parts = [
            optimizer_state(part.optimizer, "optimizers", "parts", i) for i, part in enumerate(self.optimizers.parts)
        ]
        state, own = found.load(into({"network": weights}), *parts, beside(weights, "average"), beside(weights, "best"))
        state["optimizers"] = state["optimizers"] or self._own_optimizers(found, own, parts)
        # where there were fewer workers, what is there is another's own, and two must not drop the same words
        self._take_up(state, own if self.world.rank < found.workers else {})

    def _take_up(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        """Be as the run was when it had this state. own: of this worker; where empty, it goes on with what it has."""
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
        self.network.load_state_dict(state["network"])
        self.optimizers.restore(state["optimizers"] or own["optimizers"])
        self.strategy.restore(state["strategy"])
        self.average.weights = state["average"] or None
        self.best = state["best"]
        self.guard.forget(own.get("losses", ()))
        if own:
            torch.set_rng_state(own["random"])
        if self.device.type == "cuda" and "random_cuda" in own:
            torch.cuda.set_rng_state(own["random_cuda"], self.device)

    def _own_optimizers(self, found: Found, own: dict[str, Any], parts: list[Place]) -> dict[str, Any]:
        """Optimizers' states of a run whose workers had one each: where all shall have the same, that of the first."""
        state: dict[str, Any] = found.of_first(*parts) if self.strategy.shares_optimizer else own
        return state["optimizers"]  # type: ignore[no-any-return]

    # Parts of a step

    def _reduce(self, tables: Iterable[nn.Parameter], normalized: bool) -> None:
        tables = list(tables)
        if self._in_pieces:
            add_up(tables)
        with self.world.doing("rows"):
            self.strategy.reduce(tables, normalized)

    def _update_average(self) -> None:
        """Where all workers have the same weights, so that they have the same average."""
        if self.strategy.at_rest:
            self.average.update(self.progress.step)
