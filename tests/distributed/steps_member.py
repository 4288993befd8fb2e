"""Steps in pieces, by rows that count by their tokens, by muon, and runs that diverge: run by test_steps.py.

python steps_member.py STRATEGY OUT: with the variables of torchrun in the environment, or as STRATEGY `alone`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastserve.config import DistributedConfig, TrainConfig
from fastserve.data.batches import BatchPlan
from fastserve.data.memory import MemoryRows
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import ALONE, World
from fastserve.errors import TrainingError
from fastserve.models.ragged import RaggedTensor
from fastserve.tasks.classification import Classification
from fastserve.training.events import Skipped, Stepped, WentBack
from fastserve.training.loop import TrainingRun
from fastserve.training.settings import settle
from fastserve.types import FloatArray, LongArray, Ragged, Recipe

ROWS, WORDS, BATCH, DIM = 43, 30, 8, 12
RECIPE = Recipe(epochs=2, batch=BATCH, learning_rate=0.01, warmup=0.0, keep="last", early_stopping=0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, values: Tensor) -> Tensor:
        return values + torch.tanh(self.linear(self.norm(values)))


class Small(nn.Module):
    """Blocks on the mean of embeddings. big: a table with row-sparse gradients besides."""

    def __init__(self, big: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(DIM, 3)
        self.sparse_gradients = False
        if big:
            self.big = nn.Embedding(WORDS, 3)
        self.has_big = big

    def sparse_parameters(self) -> list[str]:
        return ["big.weight"] if self.has_big else []

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        ids, mask = inputs["tokens"].padded()
        length = mask.sum(1, keepdim=True).clamp(min=1)
        values = (self.table(ids) * mask[..., None]).sum(1) / length
        for block in self.blocks:
            values = block(values)
        found = self.out(values)
        if self.has_big:
            rows = nn.functional.embedding(ids, self.big.weight, sparse=self.sparse_gradients)
            if self.sparse_gradients:
                self.big.weight.register_hook(lambda gradient: gradient.coalesce())
            found = found + (rows * mask[..., None]).sum(1)
        return found


class ByTokens(Classification):
    """The mean over tokens, in the precision of the network."""

    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        losses = nn.functional.cross_entropy(network(inputs), targets, reduction="none")
        lengths = inputs["tokens"].offsets.diff().to(losses)
        return (losses * lengths).sum() / lengths.sum()


class ByRows(Classification):
    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        return nn.functional.cross_entropy(network(inputs), targets)


@dataclass(frozen=True)
class TokenPlan(BatchPlan):
    def counts(self, rows: LongArray) -> FloatArray:
        return self.lengths[rows].astype(np.float32)

    def sizes(self, rows: LongArray) -> LongArray:
        return self.lengths[rows].astype(np.int64)


class Spoiled(MemoryRows):
    """Data of which one row makes every loss it is part of no number."""

    bad = 17

    def batch(self, rows: LongArray) -> Any:
        batch = super().batch(rows)
        if self.bad in rows.tolist():
            batch.inputs["tokens"].weights[:] = np.nan
        return batch


class Weighed(ByRows):
    """The mean over rows, times the mean of the weights, which are 1 or no number."""

    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        return super().loss(network, inputs, targets, rows) * inputs["tokens"].weights.mean()


def data(kind: type[MemoryRows] = MemoryRows) -> MemoryRows:
    random = np.random.default_rng(5)
    texts = [random.integers(2, WORDS, random.integers(3, 12)).astype(np.int32) for _ in range(ROWS)]
    ragged = Ragged.from_rows(texts)
    ragged = Ragged(ragged.values, ragged.offsets, np.ones(len(ragged.values), np.float32))
    return kind({"tokens": ragged}, np.array([int(text[0] % 3) for text in texts], np.int64))


def run_of(
    settings: DistributedConfig,
    world: World,
    folder: Path,
    *,
    tokens: bool = False,
    big: bool = False,
    spoiled: bool = False,
    recipe: Recipe = RECIPE,
    **train: Any,
) -> TrainingRun:
    torch.manual_seed(0)
    rows = data(Spoiled if spoiled else MemoryRows)
    task = (Weighed if spoiled else ByTokens if tokens else ByRows)(["a", "b", "c"])
    plan = (TokenPlan if tokens else BatchPlan)(rows.inputs["tokens"].lengths, BATCH, 0)
    train = {"checkpoint_seconds": 1e9, **train}
    return TrainingRun(
        Small(big).double(),
        task,
        settle(TrainConfig(**train), recipe, task, rows=ROWS),
        train=rows,
        plan=plan,
        validation=data(),
        validation_batches=[np.arange(0, 20), np.arange(20, ROWS)],
        device=torch.device("cpu"),
        precision=torch.float32,
        folder=folder,
        world=world,
        strategy=pick(settings, world),
    )


CASES: dict[str, dict[str, Any]] = {
    "rows": {},
    "rows-in-pieces": {"micro_batch": 3},
    "rows-one-by-one": {"micro_batch": 1},
    "tokens": {"tokens": True},
    "tokens-in-pieces": {"tokens": True, "micro_batch": 20},
    "muon": {"optimizer": "muon"},
    "muon-in-pieces": {"optimizer": "muon", "micro_batch": 3},
}
BIG: dict[str, dict[str, Any]] = {"big": {"big": True}, "big-in-pieces": {"big": True, "micro_batch": 2}}
DIVERGING: dict[str, dict[str, Any]] = {
    "stop": {"spoiled": True, "on_divergence": "stop"},
    "skip": {"spoiled": True, "on_divergence": "skip_batch"},
    "skip-often": {"spoiled": True, "on_divergence": "skip_batch", "checkpoint_seconds": 0.0},
    "lower": {"spoiled": True, "on_divergence": "lower_rate"},
}


def trained(settings: DistributedConfig, world: World, out: Path, name: str, case: dict[str, Any]) -> None:
    run = run_of(settings, world, out / "checkpoints" / name, **case)
    said: list[dict[str, Any]] = []
    try:
        for event in run.events():
            if isinstance(event, WentBack | Skipped | Stepped):
                said.append(asdict(event) | {"kind": event.kind})
    except TrainingError as error:
        said.append({"kind": "error", "message": str(error)})
    if world.leads or any(each["kind"] == "error" for each in said):
        (out / f"{name}-{world.rank}.json").write_text(json.dumps(said))
    weights = run.weights()
    if world.leads:
        save_file({key: value.contiguous().clone() for key, value in weights.items()}, out / f"{name}.safetensors")


def main(strategy: str, out: Path) -> None:
    torch.set_num_threads(1)
    alone = strategy == "alone"
    world = ALONE if alone else World.join(torch.device("cpu"), 60)
    settings = DistributedConfig() if alone else DistributedConfig(strategy=strategy)
    cases = CASES | DIVERGING | (BIG if strategy != "fsdp" else {})
    for name, case in cases.items():
        trained(settings, world, out, name, case)
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
