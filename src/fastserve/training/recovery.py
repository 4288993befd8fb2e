"""Back to the last good state of a run that has diverged, and what is done otherwise from there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastserve.distributed.checkpoints import Checkpoints, Found
from fastserve.distributed.world import World
from fastserve.errors import TrainingError
from fastserve.training.guard import LOWERED, MOST_TIMES, Broken, Decisions, Guard
from fastserve.training.settings import Settings

FILE = "decisions.json"


class Recovery:
    """Alike on all workers, although only one may have noticed. Every method is called by all of them."""

    def __init__(self, settings: Settings, checkpoints: Checkpoints, guard: Guard, world: World) -> None:
        self.settings, self.checkpoints, self.guard, self.world = settings, checkpoints, guard, world
        self.decisions = Decisions()
        self.start: tuple[Any, Any] | None = None
        """The state before the first step and this worker's own, until there is a checkpoint."""
        self._returned: int | None = None
        """The step of the checkpoint that the run went back to last."""

    def begin(self) -> None:
        """Learn what was decided before the process began."""
        told = self.world.told(asdict(Decisions.read(self._path)) if self.world.leads else None)
        self.decisions = Decisions(**told)

    @property
    def _path(self) -> Path:
        return self.checkpoints.shelf.folder / FILE

    def remember_start(self, state: Any, own: Any) -> None:
        if self.settings.on_divergence != "stop":
            self.start = copied(state), copied(own)

    def decide(self) -> Broken:
        """What broke the run first, on any worker, and what is done about it, written down.

        TrainingError where nothing is: the user wants none of it, or it has not helped.
        """
        broken = self._first()
        decisions, what = self.decisions, self.settings.on_divergence
        if what == "stop" or decisions.times >= MOST_TIMES:
            raise TrainingError(self._advice(broken))
        decisions.times += 1
        if what == "skip_batch":
            decisions.skipped.append(broken.step)
        else:
            decisions.factor *= LOWERED
        self.world.after_leader(lambda: decisions.write(self._path))
        return broken

    def _first(self) -> Broken:
        """Of all workers' first broken steps the first."""
        own = self.guard.broken
        row = [np.inf, 0.0, 0.0, 0.0] if own is None else [own.step, own.loss, own.norm, own.usual]
        found = self.world.gather(np.array([row]))
        step, *rest = found[found[:, 0].argmin()].tolist()
        return Broken(int(step), *rest)

    def _advice(self, broken: Broken) -> str:
        times, what = self.decisions.times, self.settings.on_divergence
        tried = {"lower_rate": "lowering the rate", "skip_batch": "leaving out batches"}
        said = f"; going back {times} times and {tried[what]} did not help" if times else ""
        other = "" if what == "skip_batch" else ", or leave out what breaks it with train.on_divergence=skip_batch"
        return (
            f"{broken}{said}: lower train.learning_rate (now {self.settings.recipe.learning_rate:g}) "
            f"or use train.precision=fp32{other}"
        )

    def checkpoint(self) -> Found | None:
        """The newest good checkpoint. One from which the run diverged again goes, where there is one before it."""
        found = self.checkpoints.newest()
        if found is not None and found.step == self._returned and self.checkpoints.discard(found.step):
            found = self.checkpoints.newest()
        self._returned = None if found is None else found.step
        return found


def copied(value: Any) -> Any:
    """Nested state whose tensors are copies: in the machine's memory, unless they are shards."""
    if isinstance(value, Tensor):
        place = value.device if hasattr(value, "to_local") else torch.device("cpu")
        return value.detach().to(place, copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value
