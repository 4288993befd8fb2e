"""Small language models whose steps are packed by tokens, alone or as one worker of several: used by member.py
and, as a program, by test_language_workers.py.

python language_member.py OUT: with the variables of torchrun in the environment.

Prompts and answers have any lengths, so that workers' parts of a step count very differently.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from fastserve.config import DistributedConfig, TrainConfig
from fastserve.data.memory import MemoryRows
from fastserve.data.packs import PackPlan, packed_batches
from fastserve.data.shards import Shards
from fastserve.data.store import write_store
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import World
from fastserve.models import NetworkShape, RaggedTensor, build, find, lora
from fastserve.tasks.generation import Generation
from fastserve.tasks.preference import CHOSEN, REJECTED, PreferenceTuning
from fastserve.training.generation import reference
from fastserve.training.loop import TrainingRun
from fastserve.training.settings import settle
from fastserve.types import FloatArray, Ragged

NETWORK, ROWS, WORDS, CONTEXT = "decoder-15m", 43, 60, 32
STEP_TOKENS = 90
"""About six rows; in some steps there are fewer than four workers."""
EXCHANGES = {"inner_steps": 3, "compression": "none"}
"""Options of diloco."""
SMALL = {"layers": 2, "dim": 32, "heads": 4, "key_value_heads": 2, "context": CONTEXT}
FAMILY: dict[str, dict[str, Any]] = {  # arguments of `run_of`
    "decoder": {},
    "decoder-free-head": {"options": {"tied": False, "form": "qwen3"}},
    "decoder-in-pieces": {"micro_batch": 20},
    "decoder-muon": {"optimizer": "muon"},
    "decoder-preferences": {"preferences": True},
}
if find_spec("peft") is not None:
    FAMILY["decoder-adapters"] = {"adapters": True}


def answers(seed: int) -> Ragged:
    """Prompts of which nothing counts, each with an answer."""
    random = np.random.default_rng(seed)
    rows, weights = [], []
    for _ in range(ROWS):
        prompt, answer = random.integers(1, 15), random.integers(1, 17)
        rows.append(random.integers(0, WORDS, prompt + answer).astype(np.int32))
        weights += [np.zeros(prompt, np.float32), np.ones(answer, np.float32)]
    tokens = Ragged.from_rows(rows)
    return Ragged(tokens.values, tokens.offsets, np.concatenate(weights))


def prompted() -> MemoryRows:
    """targets: what counts of each row, as if every token stood for one character of one byte."""
    tokens = answers(5)
    counted = [np.count_nonzero(tokens.between(row, row + 1).weights) for row in range(ROWS)]
    return MemoryRows({"tokens": tokens}, np.stack([np.array(counted, np.int64)] * 3, 1))


def pairs(network: nn.Module, task: PreferenceTuning) -> MemoryRows:
    """Pairs of answers with what the network thinks of them now."""
    inputs = {CHOSEN: answers(5), REJECTED: answers(6)}
    with torch.inference_mode():
        found = task.score(network, {name: RaggedTensor.from_ragged(rows) for name, rows in inputs.items()})
    return MemoryRows(inputs, found.numpy())


def run_of(
    settings: DistributedConfig,
    world: World,
    folder: Path,
    *,
    empty: bool = False,
    adapters: bool = False,
    preferences: bool = False,
    options: dict[str, Any] | None = None,
    **train: Any,
) -> TrainingRun:
    """empty: the network takes no memory until the strategy gives it some."""
    torch.manual_seed(0)
    with torch.device("meta") if empty else nullcontext():
        network = build(NETWORK, {**SMALL, **(options or {})}, NetworkShape({"tokens": WORDS}, WORDS), causal=True)
    if adapters:
        lora.add_adapters(network, lora.LoraOptions(rank=4))
    task: Any = PreferenceTuning() if preferences else Generation(z_loss=1e-4)
    data = pairs(network, task) if preferences else prompted()
    lengths = sum(rows.lengths for rows in data.inputs.values())
    plan = PackPlan(lengths, STEP_TOKENS, 0, np.ones(ROWS, np.float32) if preferences else data.targets[:, 2])
    recipe = find(NETWORK, causal=True).recipe(ROWS, WORDS)
    recipe = replace(recipe, epochs=2, learning_rate=3e-3, warmup=0.0, optimizer="adamw")  # unless `train` says another
    return TrainingRun(
        network,
        task,
        settle(TrainConfig(**train), recipe, task, rows=ROWS, steps=plan.steps),
        train=data,
        plan=plan,
        validation=data,
        validation_batches=packed_batches(lengths, 150),
        device=torch.device("cpu"),
        precision=torch.float32,
        folder=folder,
        world=world,
        strategy=pick(settings, world),
    )


def main(out: Path) -> None:
    """One of two workers that train alone for some steps, and that start with shards of a network without memory."""
    torch.set_num_threads(1)
    world = World.join(torch.device("cpu"), 60)
    diloco = DistributedConfig(strategy="diloco", options=EXCHANGES)
    fsdp = DistributedConfig(strategy="fsdp")
    runs = {
        "diloco": run_of(diloco, world, out / "diloco", keep="last"),
        "fsdp": run_of(fsdp, world, out / "fsdp"),
        "fsdp-empty": run_of(fsdp, world, out / "fsdp-empty", empty=True),
    }
    for name, run in runs.items():
        for _ in run.events():
            pass
        weights = run.weights()
        if world.leads:
            save_file({key: value.contiguous().clone() for key, value in weights.items()}, out / f"{name}.safetensors")
    leave_reference(world, out)
    world.leave()


def leave_reference(world: World, out: Path) -> None:
    """What all pairs of answers are compared with, as each worker got it."""
    if world.leads:
        write_pairs(out / "pairs")
    world.barrier()
    reference.TOKENS = 100
    found = reference_of(out, world, "shared.npy")
    again = reference_of(out, world, "shared.npy")
    np.save(out / f"reference-{world.rank}.npy", np.stack([found, again]))


def write_pairs(folder: Path) -> None:
    with write_store(folder / "00000") as store:
        sizes, lines = np.ones((ROWS, 3), np.int64), np.arange(ROWS)
        store.append({CHOSEN: answers(5), REJECTED: answers(6)}, sizes, lines)


def reference_of(folder: Path, world: World, file: str) -> FloatArray:
    """float32 (rows, 2), of the network before its first step."""
    torch.manual_seed(0)
    network = build(NETWORK, SMALL, NetworkShape({"tokens": WORDS}, WORDS), causal=True)
    pairs = Shards.open(folder / "pairs")
    return reference.referenced(network, pairs, folder / file, torch.device("cpu"), world).reference


if __name__ == "__main__":
    main(Path(sys.argv[1]))
