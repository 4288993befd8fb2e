"""One of two workers that train alone for some steps and then exchange: run by test_diloco.py.

python diloco_member.py OUT: leaves the weights that each case ends with in OUT/CASE.safetensors, and in OUT/bytes.json
what a worker has sent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import member
import torch
from safetensors.torch import save_file

from fastserve.config import DistributedConfig
from fastserve.distributed.world import World
from fastserve.training.events import Stepped
from fastserve.training.loop import TrainingRun

NETWORK, OPTIONS = "textcnn", {"dropout": 0.0, "embedding_dropout": 0.0, "word_dropout": 0.0}
INNER_STEPS = 3
PLAIN = {"optimizer": "sgd", "gradient_clip": 0.0, "learning_rate": 0.1}
member.ROWS = 40  # in steps of 8, so that both workers have as many rows in each


def start(world: World, folder: Path, strategy: str, options: dict[str, Any], **train: Any) -> TrainingRun:
    settings = DistributedConfig(strategy=strategy, options=options)
    return member.run_of(NETWORK, OPTIONS, settings, world, folder, keep="last", **train)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    world = World.join(torch.device("cpu"), 60)
    plainly = {"inner_steps": 1, "outer_rate": 1.0, "outer_momentum": 0.0, "compression": "none"}
    seldom = {"inner_steps": INNER_STEPS, "compression": "none"}
    cases = {
        "ddp": start(world, out / "a", "ddp", {}, **PLAIN),
        "every-step": start(world, out / "b", "diloco", plainly, **PLAIN),
        "seldom": start(world, out / "c", "diloco", seldom),
        "bf16": start(world, out / "d", "diloco", {**seldom, "compression": "bf16"}),
        "int8": start(world, out / "f", "diloco", {**seldom, "compression": "int8"}),
    }
    sent = {}
    for name, run in cases.items():
        world.traffic.bytes.clear()
        for _ in run.events():
            pass
        sent[name] = dict(world.traffic.bytes)
        leave(run, out / f"{name}.safetensors")
    leave(cut_and_resumed(world, out / "e", seldom), out / "resumed.safetensors")
    if world.leads:
        (out / "bytes.json").write_text(json.dumps(sent))
    world.leave()


def cut_and_resumed(world: World, folder: Path, options: dict[str, Any]) -> TrainingRun:
    """A run that is dropped two steps after its checkpoint, and another that goes on."""
    run = start(world, folder, "diloco", options, checkpoint_seconds=0)
    for event in run.events():
        if isinstance(event, Stepped) and event.step == 2 * INNER_STEPS + 1:
            break
    run.checkpoints.wait()
    again = start(world, folder, "diloco", options)
    kinds = [event.kind for event in again.events()]
    assert kinds[0] == "resumed"
    return again


def leave(run: TrainingRun, path: Path) -> None:
    weights = run.weights()
    if run.world.leads:
        save_file({name: value.contiguous().clone() for name, value in weights.items()}, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
