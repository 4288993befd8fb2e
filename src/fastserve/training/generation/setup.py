"""From a configuration and prepared data to a run that can start."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastserve import config as configuration
from fastserve import device
from fastserve.bundle.bundle import ADAPTER, Bundle
from fastserve.bundle.runtimes.torch import build_network
from fastserve.config import Config
from fastserve.data.packs import PackPlan, packed_batches
from fastserve.data.shards import Shards
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import ALONE, World
from fastserve.models import NetworkKind, NetworkShape, build, find, lora
from fastserve.tasks.base import Task
from fastserve.tasks.generation import Generation
from fastserve.tasks.preference import PreferenceTuning
from fastserve.training.generation.prepare import Prepared
from fastserve.training.generation.reference import pair_counts, pair_lengths, referenced
from fastserve.training.generation.samples import samples
from fastserve.training.loop import TrainingRun
from fastserve.training.plans import Rows
from fastserve.training.settings import Settings, merged, settle
from fastserve.types import FloatArray, IntArray, LongArray, Recipe

EVALUATION_TOKENS = 16_384
TUNED = 0.3
"""Times the learning rate from random weights, where weights that know something already are trained on."""
PREFERRED = 0.03
"""The same, where answers are compared: what Rafailov et al. 2023 took beside what fine-tuning takes."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is made of."""

    config: Config
    prepared: Prepared

    def run(self, checkpoints: Path, scratch: Path, world: World = ALONE) -> TrainingRun:
        """The run before its first step (or before it takes up a checkpoint). scratch: for what can be made again."""
        settings = self.settings()
        place = device.pick_device(self.config.train.device)
        strategy = pick(self.config.distributed, world)
        torch.manual_seed(self.config.train.seed)
        network = self.network(may_be_empty=strategy.starts_empty)
        train, validation = self.rows(network, scratch, place, world)
        if not world.leads:
            torch.manual_seed(self.config.train.seed + world.rank)  # the same weights, other features dropped
        return TrainingRun(
            network,
            self.task(settings.recipe),
            settings,
            train=train,
            plan=self.plan(settings.recipe),
            validation=validation,
            validation_batches=batches(self.prepared.validation),
            device=place,
            precision=device.pick_precision(self.config.train.precision, place),
            folder=checkpoints,
            world=world,
            strategy=strategy,
            show=self.show,
        )

    def show(self, network: nn.Module) -> list[dict[str, str]]:
        """For the events of an evaluation."""
        return [{"prompt": one.prompt, "text": one.text} for one in samples(self.prepared, network)]

    def rows(self, network: nn.Module, scratch: Path, place: torch.device, world: World) -> tuple[Rows, Rows]:
        """Training and validation rows; pairs of answers with what the network thinks of them now."""
        train, validation = self.prepared.train, self.prepared.validation
        if not self.prepared.are_pairs:
            return train, validation
        return (
            referenced(network, train, scratch / "reference-train.npy", place, world),
            referenced(network, validation, scratch / "reference-validation.npy", place, world),
        )

    def task(self, recipe: Recipe) -> Task:
        if self.prepared.are_pairs:
            return PreferenceTuning(beta=self.config.train.beta, likelihood=self.config.train.chosen_weight)
        return Generation(z_loss=recipe.z_loss)

    @property
    def start(self) -> Bundle | None:
        """The model that the run goes on from."""
        return None if self.prepared.start is None else Bundle.load(self.prepared.start)

    @property
    def kind(self) -> NetworkKind:
        return find(self.prepared.network, saved_in=self.prepared.start, causal=True)

    @property
    def shape(self) -> NetworkShape:
        start = self.start
        if start is not None:
            return NetworkShape(**start.manifest.network.shape)
        size = self.prepared.pipeline.tokenizer.vocabulary_size
        return NetworkShape({"tokens": size}, size)

    @property
    def options(self) -> dict[str, Any]:
        """The network's, with the context that the data was prepared for."""
        start = self.start
        if start is not None:
            return dict(start.manifest.network.options)
        takes_context = "context" in self.kind.Options.model_fields
        context = {"context": self.prepared.context} if takes_context else {}
        return {**context, **self.config.model.options}

    def settings(self) -> Settings:
        """What `auto` came to mean. A row of a recipe is a full context: so many make a step."""
        recipe = self.recipe()
        return settle(
            self.config.train, recipe, self.task(recipe), rows=self.contexts, steps=self.plan(self.merged(recipe)).steps
        )

    @property
    def contexts(self) -> int:
        """Full contexts that the training tokens would fill."""
        return max(int(lengths(self.prepared.train).sum(dtype=np.int64)) // self.prepared.context, 1)

    def recipe(self) -> Recipe:
        """The network's, with the optimizer and rate that fit what is trained of it, and on what."""
        recipe = self.kind.recipe(self.contexts, self.shape.outputs)
        if self.prepared.start is not None or self.config.model.lora is not None:
            recipe = replace(recipe, optimizer="adamw")  # muon moves all directions as far, also what was learned well
        tuned = TUNED if self.prepared.start is not None else 1.0
        factor = PREFERRED if self.prepared.are_pairs else tuned
        if self.config.model.lora is not None:
            factor *= lora.RATE
        return replace(recipe, learning_rate=recipe.learning_rate * factor)

    def merged(self, recipe: Recipe) -> Recipe:
        return merged(self.config.train, recipe)

    def plan(self, recipe: Recipe) -> PackPlan:
        train = self.prepared.train
        tokens = recipe.batch * self.prepared.context
        return PackPlan(lengths(train), tokens, self.config.train.seed, counted(train))

    def network(self, *, may_be_empty: bool = False) -> nn.Module:
        """The network before the first step, with adapters where these are trained.

        may_be_empty: leave it on the meta device where its first weights can be told later (`HasFirstValues`).
        """
        start = self.start
        if start is not None:
            network = build_network(start)
            if (start.folder / ADAPTER).is_dir():
                lora.merge(network)  # what was kept apart becomes part of what is trained on
        else:
            empty = may_be_empty and hasattr(self.kind, "first_values") and self.config.model.lora is None
            with torch.device("meta") if empty else nullcontext():
                network = build(self.prepared.network, self.options, self.shape, causal=True)
        if self.config.model.lora is not None:
            wanted = configuration.check(lora.LoraOptions, self.config.model.lora, "model.lora")
            lora.add_adapters(network, wanted)
        return network


def lengths(rows: Shards) -> IntArray:
    """int32 (rows,): tokens of each row, of both answers where it is a pair."""
    return pair_lengths(rows) if "rejected" in rows.encodings else rows.lengths("tokens")


def counted(rows: Shards) -> FloatArray:
    """float32 (rows,): how much each row counts, by its tokens or as a pair."""
    return pair_counts(rows) if "rejected" in rows.encodings else rows.targets[:, 2].astype(np.float32)


def batches(rows: Shards) -> list[LongArray]:
    """Every row once, for an evaluation."""
    return packed_batches(lengths(rows), EVALUATION_TOKENS)
