"""From a configuration and prepared data to a run that can start: task, network, settings, batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastserve import device, log
from fastserve.config import Config
from fastserve.data.batches import BatchPlan, evaluation_batches
from fastserve.data.memory import MemoryRows
from fastserve.data.store import Store, write_store
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import ALONE, World
from fastserve.errors import ConfigError, choices
from fastserve.models import NetworkKind, NetworkShape, build, find
from fastserve.models.network import HasFixedInputs, HasStatistics
from fastserve.tasks.classification import Classification, balanced_weights
from fastserve.training.classification.prepare import Prepared
from fastserve.training.classification.start import Start, take_weights
from fastserve.training.loop import TrainingRun
from fastserve.training.plans import Rows
from fastserve.training.settings import Settings, settle
from fastserve.types import Encoded, LongArray, Ragged

EVALUATION_TOKENS = 16_384
COUNTED_ROWS = 32_768
"""Rows counted at once: a count passes over the whole table of n-grams."""
COMPUTED_ROWS = 1_024
"""Rows computed at once: few, so that what is made on the way stays in the cache."""
MEMORY_VALUES = 32 << 20
"""Tokens and n-grams of a training set that is computed once and kept (8 bytes each). A larger one would take as much
disk again, and as long to write and to read, as each batch takes to compute."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is made of."""

    config: Config
    prepared: Prepared

    @property
    def kind(self) -> NetworkKind:
        return find(self.prepared.network, saved_in=self._saved_in)

    @property
    def _saved_in(self) -> Path | None:
        """The folder with the network's own files, where it comes from a model."""
        return None if self.prepared.start is None else self.prepared.start.bundle.folder

    @property
    def options(self) -> dict[str, Any]:
        """The network's: those of the model that the run goes on from, and the user's."""
        start = self.prepared.start
        return {**({} if start is None else start.bundle.manifest.network.options), **self.config.model.options}

    def run(self, checkpoints: Path, scratch: Path, world: World = ALONE) -> TrainingRun:
        """The run before its first step (or before it takes up a checkpoint). scratch: for what can be made again."""
        settings = self.settings()
        place = device.pick_device(self.config.train.device)
        strategy = pick(self.config.distributed, world)
        torch.manual_seed(self.config.train.seed)
        network = self.network(may_be_empty=strategy.starts_empty)
        if not world.leads:
            torch.manual_seed(self.config.train.seed + world.rank)  # the same weights, other words dropped
        encoding = self.kind.encodings[0]
        train, validation = self.prepared.train, self.prepared.validation.store
        return TrainingRun(
            network,
            self.task(settings.recipe.label_smoothing),
            settings,
            train=precomputed(network, train, scratch, world) if isinstance(network, HasFixedInputs) else train,
            plan=BatchPlan(train.lengths(encoding), settings.recipe.batch, self.config.train.seed),
            validation=validation,
            validation_batches=batches(validation),
            device=place,
            precision=self.precision(settings, place),
            folder=checkpoints,
            world=world,
            strategy=strategy,
        )

    def settings(self) -> Settings:
        rows = len(self.prepared.train)
        recipe = self.kind.recipe(rows, len(self.prepared.labels))
        return settle(self.config.train, recipe, self.task(), rows=rows)

    def task(self, label_smoothing: float = 0.0) -> Classification:
        return Classification(
            self.prepared.labels,
            multi_label=self.prepared.multi_label,
            label_smoothing=label_smoothing,
            class_weights=self.class_weights(),
        )

    def class_weights(self) -> list[float] | None:
        """What the user said of the classes, in their order."""
        wanted, labels = self.config.train.class_weights, self.prepared.labels
        if wanted == "balanced":
            return balanced_weights(class_counts(self.prepared.train, len(labels)))
        if not isinstance(wanted, dict):
            return None
        for label in wanted.keys() - set(labels):
            raise ConfigError(f"train.class_weights names '{label}', which is no label: {choices(label, labels)}")
        return [wanted.get(label, 1.0) for label in labels]

    def network(self, *, may_be_empty: bool = False) -> nn.Module:
        """The network, with what it learns from counts, and with the user's word vectors or the weights of a model.

        may_be_empty: leave it on the meta device where its first weights can be told later (`HasFirstValues`).
        """
        model, start = self.config.model, self.prepared.start
        begins_at_random = model.embeddings is None and start is None
        empty = may_be_empty and begins_at_random and hasattr(self.kind, "first_values")
        with torch.device("meta") if empty else nullcontext():
            network = self._built(self.prepared.shape)
        if isinstance(network, HasStatistics):
            network.fit_statistics(encoded_blocks(self.prepared.train))
        if model.embeddings is not None:
            log.say(self._load_embeddings(network, Path(model.embeddings)))
        if start is not None:
            log.say(take_weights(network, start, self._of_labels(start)))
        return network

    def _built(self, shape: NetworkShape) -> nn.Module:
        return build(self.prepared.network, self.options, shape, saved_in=self._saved_in)

    def _of_labels(self, start: Start) -> set[str]:
        """Names of the weights that belong to the labels, none where these are the model's own: their shapes change
        with the number of labels."""
        if list(start.bundle.manifest.labels) == self.prepared.labels:
            return set()
        shape = self.prepared.shape
        with torch.device("meta"):
            few, many = (self._built(replace(shape, outputs=shape.outputs + more)).state_dict() for more in (1, 2))
        return {name for name, value in few.items() if value.shape != many[name].shape}

    def _load_embeddings(self, network: nn.Module, path: Path) -> str:
        from fastserve.models.embeddings import load_embeddings

        vocabulary = self.prepared.pipeline.vocabulary
        if vocabulary is None:
            raise ConfigError(
                f"model.embeddings: network '{self.prepared.network}' reads no words; use mlp, textcnn or lstm"
            )
        return str(load_embeddings(network, path, vocabulary))

    def precision(self, settings: Settings, place: torch.device) -> torch.dtype:
        """bf16 where the user says so, or where the network gains by it and the hardware is fast at it."""
        if self.config.train.precision == "auto" and not settings.recipe.bf16:
            return torch.float32
        return device.pick_precision(self.config.train.precision, place)


def batches(store: Store) -> list[LongArray]:
    """Every row once, for an evaluation."""
    return list(evaluation_batches(store.lengths(store.encodings[0]), EVALUATION_TOKENS))


def class_counts(store: Store, classes: int) -> LongArray:
    """int64 (classes,): rows that have each label."""
    targets = store.targets
    if targets.ndim == 2:
        return np.asarray(targets.sum(axis=0), np.int64)
    return np.bincount(targets, minlength=classes)


def precomputed(network: HasFixedInputs, store: Store, folder: Path, world: World = ALONE) -> Rows:
    """`store` after the network's steps that do not change in training: in memory, or in `folder` for several workers.

    A large store is left as it is: the network takes those steps with each batch.
    """
    values = sum(int(store.lengths(name).sum()) for name in store.encodings)
    if values > MEMORY_VALUES:
        return store
    if world.alone:
        return _in_memory(network, store)
    world.after_leader(lambda: _on_disk(network, store, folder))
    return Store.open(folder)


def _on_disk(network: HasFixedInputs, store: Store, folder: Path) -> None:
    if folder.is_dir():
        return
    with write_store(folder) as writer, torch.inference_mode():
        for batch in store.in_order(COMPUTED_ROWS):
            writer.append(network.precompute(batch.inputs), batch.targets, batch.rows)


def _in_memory(network: HasFixedInputs, store: Store) -> MemoryRows:
    with torch.inference_mode():
        parts = [network.precompute(batch.inputs) for batch in store.in_order(COMPUTED_ROWS)]
    inputs = {name: Ragged.concatenate([part[name] for part in parts]) for name in parts[0]}
    return MemoryRows(inputs, np.asarray(store.targets))


def encoded_blocks(store: Store) -> Iterator[tuple[Encoded, Any]]:
    """The whole store in order, block by block."""
    for batch in store.in_order(COUNTED_ROWS):
        yield batch.inputs, batch.targets
