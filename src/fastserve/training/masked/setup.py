"""From a configuration and prepared data to a run that can start."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastserve import device
from fastserve.config import Config
from fastserve.data.batches import WINDOW
from fastserve.data.packs import PackPlan, packed_batches
from fastserve.data.shards import Shards
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import ALONE, World
from fastserve.models import NetworkShape
from fastserve.models.masked import build_masked, masked_form
from fastserve.models.masking import chosen
from fastserve.tasks.masked import Masked
from fastserve.training.loop import TrainingRun
from fastserve.training.masked.prepare import Prepared
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
        settings = self.settings()
        place = device.pick_device(self.config.train.device)
        strategy = pick(self.config.distributed, world)
        torch.manual_seed(self.config.train.seed)
        network = self.network(may_be_empty=strategy.starts_empty)
        if not world.leads:
            torch.manual_seed(self.config.train.seed + world.rank)  # the same weights, other places hidden
        return TrainingRun(
            network,
            self.task,
            settings,
            train=self.prepared.train,
            plan=self.plan(settings),
            validation=self.prepared.validation,
            validation_batches=batches(self.prepared.validation),
            device=place,
            precision=self.precision(settings, place),
            folder=checkpoints,
            world=world,
            strategy=strategy,
        )

    @property
    def shape(self) -> NetworkShape:
        size = self.prepared.pipeline.vocabulary_size("tokens")
        return NetworkShape({"tokens": size}, size)

    @property
    def task(self) -> Masked:
        return Masked(self.shape.vocabulary["tokens"])

    def settings(self) -> Settings:
        """What `auto` came to mean. A row of a recipe is one of full length: so many make a step."""
        tokens = int(self.prepared.train.lengths("tokens").sum(dtype=np.int64))
        rows = max(tokens // self.prepared.pipeline.max_length, 1)
        recipe = masked_form(self.prepared.network).recipe(rows, self.shape.outputs)
        return settle(self.config.train, recipe, self.task, rows=rows)

    def plan(self, settings: Settings) -> PackPlan:
        lengths = self.prepared.train.lengths("tokens")
        tokens = settings.recipe.batch * self.prepared.pipeline.max_length
        return PackPlan(lengths, tokens, self.config.train.seed, counted(self.prepared.train), alike=WINDOW)

    def network(self, *, may_be_empty: bool = False) -> nn.Module:
        """The network; on the meta device where its first weights can be told later (`HasFirstValues`)."""
        with torch.device("meta") if may_be_empty else nullcontext():
            return build_masked(self.prepared.network, self.config.model.options, self.shape)

    def precision(self, settings: Settings, place: torch.device) -> torch.dtype:
        """bf16 where the user says so, or where the network gains by it and the hardware is fast at it."""
        if self.config.train.precision == "auto" and not settings.recipe.bf16:
            return torch.float32
        return device.pick_precision(self.config.train.precision, place)


def counted(rows: Shards) -> FloatArray:
    """float32 (rows,): tokens of each row that will be hidden."""
    found: FloatArray = chosen(torch.from_numpy(rows.lengths("tokens"))).float().numpy()
    return found


def batches(rows: Shards) -> list[LongArray]:
    """Every row once, for an evaluation."""
    return packed_batches(rows.lengths("tokens"), EVALUATION_TOKENS)
