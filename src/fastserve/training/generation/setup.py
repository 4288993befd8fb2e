"""From a configuration and prepared data to a run that can start."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastserve import device
from fastserve.config import Config
from fastserve.data.packs import PackPlan, packed_batches
from fastserve.data.shards import Shards
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import ALONE, World
from fastserve.models import NetworkKind, NetworkShape, build, find
from fastserve.tasks.generation import Generation
from fastserve.training.generation.prepare import Prepared
from fastserve.training.loop import TrainingRun
from fastserve.training.settings import Settings, settle
from fastserve.types import FloatArray, LongArray

EVALUATION_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is made of."""

    config: Config
    prepared: Prepared

    def run(self, checkpoints: Path, world: World = ALONE) -> TrainingRun:
        """The run before its first step (or before it takes up a checkpoint)."""
        train = self.prepared.train
        settings = self.settings()
        place = device.pick_device(self.config.train.device)
        strategy = pick(self.config.distributed, world)
        torch.manual_seed(self.config.train.seed)
        network = self.network(may_be_empty=strategy.starts_empty)
        if not world.leads:
            torch.manual_seed(self.config.train.seed + world.rank)
        return TrainingRun(
            network,
            Generation(),
            settings,
            train=train,
            plan=self.plan(settings),
            validation=self.prepared.validation,
            validation_batches=batches(self.prepared.validation),
            device=place,
            precision=device.pick_precision(self.config.train.precision, place),
            folder=checkpoints,
            world=world,
            strategy=strategy,
        )

    @property
    def kind(self) -> NetworkKind:
        return find(self.prepared.network, causal=True)

    @property
    def shape(self) -> NetworkShape:
        size = self.prepared.pipeline.tokenizer.vocabulary_size
        return NetworkShape({"tokens": size}, size)

    @property
    def options(self) -> dict[str, Any]:
        """The network's, with the context that the data was prepared for."""
        takes_context = "context" in self.kind.Options.model_fields
        context = {"context": self.prepared.context} if takes_context else {}
        return {**context, **self.config.model.options}

    def settings(self) -> Settings:
        """What `auto` came to mean. A row of a recipe is a full context: so many make a step."""
        lengths = self.prepared.train.lengths("tokens")
        contexts = max(int(lengths.sum(dtype=np.int64)) // self.prepared.context, 1)
        recipe = self.kind.recipe(contexts, self.shape.outputs)
        return settle(self.config.train, recipe, Generation(), rows=contexts)

    def plan(self, settings: Settings) -> PackPlan:
        train = self.prepared.train
        tokens = settings.recipe.batch * self.prepared.context
        return PackPlan(train.lengths("tokens"), tokens, self.config.train.seed, counted(train))

    def network(self, *, may_be_empty: bool = False) -> nn.Module:
        """The network; on the meta device where its first weights can be told later (`HasFirstValues`)."""
        empty = may_be_empty and hasattr(self.kind, "first_values")
        with torch.device("meta") if empty else nullcontext():
            return build(self.prepared.network, self.options, self.shape, causal=True)


def counted(rows: Shards) -> FloatArray:
    """float32 (rows,): tokens of each row that count in the loss."""
    return rows.targets[:, 2].astype(np.float32)


def batches(rows: Shards) -> list[LongArray]:
    """Every row once, for an evaluation."""
    return packed_batches(rows.lengths("tokens"), EVALUATION_TOKENS)
