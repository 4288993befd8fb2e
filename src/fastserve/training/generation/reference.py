"""What the network thought of each answer before the first step of preference tuning, computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastserve import files, log
from fastserve.data.packs import packed_batches
from fastserve.data.shards import Shards
from fastserve.distributed.world import World
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.preference import CHOSEN, REJECTED, PreferenceTuning
from fastserve.types import Batch, FloatArray, IntArray, LongArray

TOKENS = 16_384
"""Tokens that are read at once."""


@dataclass(frozen=True, slots=True)
class Referenced:
    """Pairs of answers whose targets are the reference. reference: float32 (rows, 2)."""

    pairs: Shards
    reference: FloatArray

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, rows: LongArray) -> Batch:
        """The given rows, in the given order, copied out."""
        return replace(self.pairs.batch(rows), targets=self.reference[rows])


def pair_lengths(pairs: Shards) -> IntArray:
    """int32 (rows,): tokens of both answers with their prompts."""
    return pairs.lengths(CHOSEN) + pairs.lengths(REJECTED)


def referenced(network: nn.Module, pairs: Shards, file: Path, place: torch.device, world: World) -> Referenced:
    """The pairs with their reference, which is read from `file`, or computed by all workers and left there."""
    if world.told(file.is_file()):
        return Referenced(pairs, np.load(file, allow_pickle=False))
    reference = _computed(network, pairs, place, world)
    if world.leads:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.new_file(file) as out:
            np.save(out, reference, allow_pickle=False)
    return Referenced(pairs, reference)


def _computed(network: nn.Module, pairs: Shards, place: torch.device, world: World) -> FloatArray:
    """float32 (rows, 2). Workers take turns with the batches, and all get the whole."""
    task, mine = PreferenceTuning(), packed_batches(pair_lengths(pairs), TOKENS)[world.rank :: world.size]
    network.to(place).eval()
    found = [np.zeros((0, 2), np.float32)]
    with world.pulse.during("evaluation"), torch.inference_mode():
        for rows in _shown(mine) if world.leads else mine:
            found.append(task.score(network, _inputs(pairs.batch(rows), place)).float().cpu().numpy())
            world.pulse.turns += 1
    reference = np.zeros((len(pairs), 2), np.float32)
    order = world.gather(np.concatenate([np.zeros(0, np.int64), *mine]))
    reference[order] = world.gather(np.concatenate(found))
    return reference


def _shown(batches: list[LongArray]) -> Iterator[LongArray]:
    """The batches, with a line that says how far it is."""
    with log.Progress("reference", total=sum(map(len, batches)), unit="pairs") as progress:
        for rows in batches:
            yield rows
            progress.advance(len(rows))


def _inputs(batch: Batch, place: torch.device) -> dict[str, Any]:
    return {name: RaggedTensor.from_ragged(ragged).to(place) for name, ragged in batch.inputs.items()}


def pair_counts(pairs: Shards) -> npt.NDArray[np.float32]:
    """Each pair counts the same."""
    return np.ones(len(pairs), np.float32)
