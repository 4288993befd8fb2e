"""What `auto` came to mean for one run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastserve.config import TrainConfig
from fastserve.errors import ConfigError, choices
from fastserve.tasks.base import Task
from fastserve.types import Recipe


@dataclass(frozen=True, slots=True)
class Settings:
    """A training configuration without `auto`."""

    recipe: Recipe
    steps_per_epoch: int
    evaluate_every: int
    plateau_patience: int
    metric: str
    more_is_better: bool
    checkpoint_seconds: float
    seed: int

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    def rate_at(self, step: int) -> float:
        """Factor of the learning rate for optimizer step `step` (from 0): a linear warm-up, then the schedule."""
        total = max(self.total_steps, 1)
        warmup = self.recipe.warmup * total
        if step < warmup:
            return (step + 1) / (warmup + 1)
        share = (step - warmup) / max(total - warmup, 1)
        if self.recipe.schedule == "linear":
            return max(1 - share, 0.0)
        if self.recipe.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return 1.0


def settle(config: TrainConfig, recipe: Recipe, task: Task, *, rows: int) -> Settings:
    """Lay what the user said over what the network recommends."""
    merged = Recipe(
        **{
            field: getattr(recipe, field) if getattr(config, field, "auto") == "auto" else getattr(config, field)
            for field in Recipe.__dataclass_fields__
        }
    )
    metric = task.main_metric if config.metric == "auto" else config.metric
    if metric not in task.metrics:
        raise ConfigError(f"train.metric '{metric}' is not measured during a run: {choices(metric, task.metrics)}")
    steps_per_epoch = max(1, math.ceil(rows / merged.batch))
    return Settings(
        recipe=merged,
        steps_per_epoch=steps_per_epoch,
        evaluate_every=steps_per_epoch if config.evaluate_every == "auto" else config.evaluate_every,
        plateau_patience=config.plateau_patience,
        metric=metric,
        more_is_better=task.metrics[metric],
        checkpoint_seconds=config.checkpoint_seconds,
        seed=config.seed,
    )
