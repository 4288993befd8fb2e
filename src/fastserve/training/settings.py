"""What `auto` came to mean for one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastserve.config import TrainConfig
from fastserve.errors import ConfigError, choices
from fastserve.tasks.base import Task
from fastserve.types import Recipe

SHORT_RUN = 1_000
"""In a run of fewer steps no loss is taken for a spike, and nothing is compiled, unless the user says so."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A training configuration without `auto`.

    max_steps: None where the epochs alone end the run. micro_batch: None where memory decides.
    compile: None where the device decides. evaluate_rows: None for all.
    """

    recipe: Recipe
    steps_per_epoch: int
    evaluate_every: int
    plateau_patience: int
    metric: str
    more_is_better: bool
    checkpoint_seconds: float
    seed: int
    max_steps: int | None = None
    micro_batch: int | None = None
    on_divergence: str = "lower_rate"
    compile: bool | None = False
    checkpoint_activations: bool = False
    evaluate_rows: int | None = None

    @property
    def total_steps(self) -> int:
        steps = self.recipe.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def compiles(self, device: str) -> bool:
        """Whether the network is compiled on a device of this type; in a short run that takes longer than it saves."""
        if self.compile is not None:
            return self.compile
        return device == "cuda" and self.total_steps >= SHORT_RUN

    def rate_at(self, step: int) -> float:
        """Factor of the learning rate for optimizer step `step` (from 0): a linear warm-up, then the schedule."""
        total = max(self.total_steps, 1)
        warmup = self.recipe.warmup * total
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = (step - warmup) / max(total - warmup, 1)
        falling = (step - (1 - self.recipe.decay) * total) / (self.recipe.decay * total)
        return FACTORS[self.recipe.schedule](min(share, 1.0), min(max(falling, 0.0), 1.0))


FACTORS: Mapping[str, Callable[[float, float], float]] = {
    "linear": lambda share, falling: 1 - share,
    "cosine": lambda share, falling: 0.5 * (1 + math.cos(math.pi * share)),
    "wsd": lambda share, falling: 1 - math.sqrt(falling),
    "constant": lambda share, falling: 1.0,
    "plateau": lambda share, falling: 1.0,
}
"""Of the rate after the warm-up. share: of the steps after it that are done; falling: of the last ones, in which the
rate of `wsd` falls (Hu et al. 2024, arXiv 2404.06395; by 1 - sqrt: Hägele et al. 2024, arXiv 2405.18392)."""


def merged(config: TrainConfig, recipe: Recipe) -> Recipe:
    """What the user said laid over what the network recommends."""
    said: dict[str, Any] = {field: getattr(config, field, "auto") for field in Recipe.__dataclass_fields__}
    return replace(recipe, **{field: value for field, value in said.items() if value != "auto"})


def settle(config: TrainConfig, recipe: Recipe, task: Task, *, rows: int, steps: int | None = None) -> Settings:
    """The settings of a run on so many rows. steps: of an epoch, where they are not rows by batch.

    ConfigError where what the user said does not go together.
    """
    found = merged(config, recipe)
    metric = task.main_metric if config.metric == "auto" else config.metric
    if metric not in task.metrics:
        raise ConfigError(f"train.metric '{metric}' is not measured during a run: {choices(metric, task.metrics)}")
    _check(config, found, task)
    steps_per_epoch = steps or max(1, math.ceil(rows / found.batch))
    if config.max_steps is not None and config.epochs == "auto":
        found = replace(found, epochs=math.ceil(config.max_steps / steps_per_epoch))
    settings = Settings(
        recipe=found,
        steps_per_epoch=steps_per_epoch,
        evaluate_every=steps_per_epoch if config.evaluate_every == "auto" else config.evaluate_every,
        plateau_patience=config.plateau_patience,
        metric=metric,
        more_is_better=task.metrics[metric],
        checkpoint_seconds=config.checkpoint_seconds,
        seed=config.seed,
        max_steps=config.max_steps,
        micro_batch=None if config.micro_batch == "auto" else config.micro_batch,
        on_divergence=config.on_divergence,
        compile=None if config.compile == "auto" else config.compile,
        checkpoint_activations=config.checkpoint_activations,
        evaluate_rows=None if config.evaluate_rows == "auto" else config.evaluate_rows,
    )
    quiet = config.spike == "auto" and settings.total_steps < SHORT_RUN
    return replace(settings, recipe=replace(found, spike=0.0)) if quiet else settings


def _check(config: TrainConfig, recipe: Recipe, task: Task) -> None:
    """ConfigError where keys say what the others make void."""
    if config.matrix_rate != "auto" and recipe.optimizer != "muon":
        raise ConfigError(
            f"train.matrix_rate is of optimizer muon, but this run has {recipe.optimizer}: say train.optimizer=muon, "
            "or train.learning_rate"
        )
    if config.decay != "auto" and recipe.schedule != "wsd":
        raise ConfigError(
            f"train.decay is of schedule wsd, but this run has {recipe.schedule}: say train.schedule=wsd, or no decay"
        )
    if recipe.schedule == "wsd" and recipe.warmup + recipe.decay > 1:
        raise ConfigError(
            f"train.warmup {recipe.warmup:g} and train.decay {recipe.decay:g} are more than the whole run together"
        )
    if config.z_loss not in ("auto", 0) and not hasattr(task, "z_loss"):
        raise ConfigError(f"train.z_loss is of language models; task {task.name} has none: leave it out")
    if 0 < recipe.spike <= 1:
        raise ConfigError(f"train.spike is {recipe.spike:g}: a spike is more than 1 times the usual loss (0: no check)")
