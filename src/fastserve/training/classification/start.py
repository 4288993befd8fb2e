"""What a classifier takes over from the model that it goes on from: text steps, network, and weights."""

from __future__ import annotations

import shutil
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.bundle.bundle import Bundle
from fastserve.config import Config, TextConfig
from fastserve.errors import ConfigError
from fastserve.training.start import reference_of, start_of

if TYPE_CHECKING:
    from torch import nn

FOLDER = "start"
TASKS = ("masked", "classification")
"""Of models that a classifier can go on from."""


@dataclass(frozen=True, slots=True)
class Start:
    """A copy of the model, which stays as it was when the run began, and what it is called."""

    bundle: Bundle
    reference: str


def check_start(config: Config, start: Bundle) -> None:
    """ConfigError for a model of another kind, or for settings that its text steps do not have."""
    name, manifest = config.model.start, start.manifest
    if manifest.task not in TASKS:
        raise ConfigError(
            f"model.start '{name}' is a model for {manifest.task}, from which no classifier can go on: name one for "
            f"{' or '.join(TASKS)}"
        )
    if config.model.embeddings is not None:
        raise ConfigError(f"model.start '{name}' has word vectors of its own: leave model.embeddings out")
    usual, own = TextConfig(), start.pipeline.config
    for field in TextConfig.model_fields:
        wanted, has = getattr(config.text, field), getattr(own, field)
        if wanted not in (getattr(usual, field), has):
            raise ConfigError(
                f"text.{field}={wanted} would change the text steps of model.start '{name}', for which its weights "
                f"were made: leave it out, or train the start with it"
            )


def take_start(config: Config, folder: Path) -> Start | None:
    """Copy the model that `model.start` names into the prepared data."""
    start = start_of(config)
    if start is None:
        return None
    shutil.copytree(start.folder, folder / FOLDER)
    return load_start(folder, reference_of(start))


def load_start(folder: Path, reference: str | None) -> Start | None:
    """The copy in prepared data, where there is one."""
    return None if reference is None else Start(Bundle.load(folder / FOLDER), reference)


def take_weights(network: nn.Module, start: Start, anew: Set[str]) -> str:
    """Give `network` the weights of `start`, all but those in `anew`; says how many in a sentence.

    Statistics that a network keeps beside its weights are taken only where nothing begins anew, since they belong
    together. ConfigError where a weight is missing or has another shape, or where there is none to take.
    """
    import torch

    found = start.bundle.weights()
    mine = network.state_dict() if not anew else dict(network.named_parameters())
    wanted = {name: value for name, value in mine.items() if name not in anew}
    if not wanted:
        raise ConfigError(
            f"{start.reference} has no weights but those of its labels, and the data has others: train without "
            "model.start"
        )
    for name, value in wanted.items():
        shape = found[name].shape if name in found else None
        if shape != tuple(value.shape):
            has = "none" if shape is None else f"one of shape {shape}"
            raise ConfigError(
                f"the network wants a weight '{name}' of shape {tuple(value.shape)}, and {start.reference} has {has}: "
                "leave out the model.options that change the network"
            )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(torch.from_numpy(found[name]))
    total = sum(value.numel() for value in wanted.values())
    left = f"; {len(anew)} of the output layer begin anew" if anew else ""
    return f"took {len(wanted)} weights ({total:,} numbers) from {start.reference}{left}"
