"""One of several workers that train a network of 200 MB in shards: run by test_fsdp.py.

python large_member.py OUT: leaves in OUT/RANK.json how much memory the start took at most, and a step.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from member import run_of

from fastserve.config import DistributedConfig
from fastserve.distributed.world import World
from fastserve.training.loop import TrainingRun

SCARCE = 3 << 30
"""Bytes that a worker may have: more than it needs, and so little that what is freed goes back to the system."""
SMALL = {"dropout": 0.0, "layers": 1, "dim": 16, "heads": 2, "feedforward": 16}
LARGE = {"dropout": 0.0, "layers": 10, "dim": 640, "heads": 4, "feedforward": 2560}


def start(options: Mapping[str, Any], world: World, folder: Path) -> TrainingRun:
    return run_of("transformer", options, DistributedConfig(strategy="fsdp"), world, folder, empty=True)


def train(run: TrainingRun) -> None:
    part = run.world.part(run.plan.epoch(0)[0])
    run.step(run.train.batch(part.rows), part)


def memory(name: str) -> int:
    """Bytes, by the kernel's name."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) * 1024


def main(out: Path) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (SCARCE, SCARCE))
    world = World.join(torch.device("cpu"), 60)
    train(start(SMALL, world, out / "small"))  # what the first step imports is not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = memory("VmRSS")
    run = start(LARGE, world, out / "large")
    started = memory("VmHWM") - before
    train(run)
    found = {
        "whole": 4 * sum(parameter.numel() for parameter in run.network.parameters()),
        "started": started,
        "trained": memory("VmHWM") - before,
    }
    (out / f"{world.rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
