"""A few training steps of every kind of network, alone or as one worker of several: run by test_strategies.py.

python member.py STRATEGY OUT: with the variables of torchrun in the environment, or as STRATEGY `alone`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import language_member
import numpy as np
import torch
from safetensors.torch import save_file

from fastserve.config import DistributedConfig, TrainConfig
from fastserve.data.batches import BatchPlan
from fastserve.data.memory import MemoryRows
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import ALONE, World
from fastserve.models import NetworkShape, build, find
from fastserve.models.network import HasStatistics
from fastserve.tasks.classification import Classification
from fastserve.training.loop import TrainingRun
from fastserve.training.settings import settle
from fastserve.types import Ragged

ROWS, WORDS, BATCH = 43, 60, 8
"""43 rows in steps of 8: the last step has 3 rows, fewer than four workers."""
NETWORKS = {
    "linear": {},
    "bag": {},
    "wide-deep": {"dropout": 0.0, "embedding_dropout": 0.0, "word_dropout": 0.0},
    "mlp": {"dropout": 0.0},
    "textcnn": {"dropout": 0.0},
    "lstm": {"dropout": 0.0},
    "transformer": {"dropout": 0.0, "layers": 2, "dim": 32, "heads": 2},
}


def rows() -> MemoryRows:
    random = np.random.default_rng(5)
    texts = [random.integers(2, WORDS, random.integers(3, 12)).astype(np.int32) for _ in range(ROWS)]
    tokens = Ragged.from_rows(texts)
    grams = Ragged.from_rows([np.unique(text) for text in texts])
    grams = Ragged(grams.values, grams.offsets, np.ones(len(grams.values), np.float32))
    targets = np.array([int(text[0] % 3) for text in texts], np.int64)
    return MemoryRows({"tokens": tokens, "ngrams": grams}, targets)


def run_of(
    name: str,
    options: Mapping[str, object],
    settings: DistributedConfig,
    world: World,
    folder: Path,
    *,
    empty: bool = False,
    average: float = 0.0,
    **train: Any,
) -> TrainingRun:
    """empty: the network takes no memory until the strategy gives it some. train: of the training's configuration."""
    torch.manual_seed(0)
    data = rows()
    task = Classification(["a", "b", "c"], class_weights=[1.0, 2.0, 0.5])
    with torch.device("meta") if empty else nullcontext():
        network = build(name, options, NetworkShape({"tokens": WORDS, "ngrams": WORDS}, 3))
    if isinstance(network, HasStatistics):
        network.fit_statistics([({"ngrams": data.inputs["ngrams"], "tokens": data.inputs["tokens"]}, data.targets)])
    recipe = replace(find(name).recipe(ROWS, 3), batch=BATCH, epochs=2, average=average)
    return TrainingRun(
        network,
        task,
        settle(TrainConfig(**train), recipe, task, rows=ROWS),
        train=data,
        plan=BatchPlan(data.inputs["tokens"].lengths, BATCH, 0),
        validation=data,
        validation_batches=[np.arange(0, 20), np.arange(20, ROWS)],
        device=torch.device("cpu"),
        precision=torch.float32,
        folder=folder,
        world=world,
        strategy=pick(settings, world),
    )


def main(strategy: str, out: Path) -> None:
    torch.set_num_threads(1)
    alone = strategy == "alone"
    world = ALONE if alone else World.join(torch.device("cpu"), 60)
    settings = DistributedConfig() if alone else DistributedConfig(strategy=strategy)
    starts = {name: partial(run_of, name, options) for name, options in NETWORKS.items()}
    starts |= {name: partial(language_member.run_of, **case) for name, case in language_member.FAMILY.items()}
    for name, start in starts.items():
        run = start(settings, world, out / "checkpoints" / name)
        first = {key: value.clone() for key, value in run.weights().items()}
        for _ in run.events():
            pass
        scores, targets = run.scores(run.validation, run.validation_batches)
        found = {
            **{f"weights/{key}": value for key, value in run.weights().items()},
            "scores": torch.from_numpy(scores),
        }
        found |= {f"first/{key}": value for key, value in first.items()} | {"targets": torch.from_numpy(targets)}
        if world.leads:
            save_file({key: value.contiguous().clone() for key, value in found.items()}, out / f"{name}.safetensors")
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
