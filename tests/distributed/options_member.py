"""One of two workers that train under options of the strategies, and with averaged weights: run by test_options.py.

python options_member.py OUT: leaves the weights that each case ends with in OUT/CASE.safetensors, and in OUT/RANK.json
what this worker has sent, and its figures beside a slow one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import member
import torch
from member import NETWORKS, run_of
from safetensors.torch import save_file
from torch import Tensor

from fastserve.config import DistributedConfig
from fastserve.distributed.world import World
from fastserve.training.events import Stepped
from fastserve.training.figures import WorkerFigures, compare
from fastserve.training.loop import TrainingRun

BF16 = {"weights": "bf16", "gradients": "bf16"}
PRECISE = ("textcnn", "transformer")
"""With a table that is not in shards; with blocks."""
ROWS = 48
"""In steps of 8, so that both workers have as many in each."""
DECAY, INNER_STEPS = 0.9, 3
SLOW_SECONDS = 0.03


class Member:
    def __init__(self, out: Path) -> None:
        member.ROWS = ROWS
        self.out, self.world = out, World.join(torch.device("cpu"), 60)
        self.told: dict[str, Any] = {}

    def start(self, name: str, network: str, strategy: str, options: dict[str, Any], **more: Any) -> TrainingRun:
        settings = DistributedConfig(strategy=strategy, options=options)
        return run_of(network, NETWORKS[network], settings, self.world, self.out / name, keep="last", **more)

    def case(self, name: str, network: str, strategy: str, options: dict[str, Any], **more: Any) -> None:
        """A whole run."""
        self.world.traffic.bytes.clear()
        run = self.start(name, network, strategy, options, **more)
        for _ in run.events():
            pass
        self.told[name] = dict(self.world.traffic.bytes)
        self.leave(name, run.weights())

    def resumed(self, name: str, strategy: str, options: dict[str, Any]) -> None:
        """A run that is dropped two steps after a checkpoint, and another that goes on."""
        first = self.start(name, "transformer", strategy, options, average=DECAY, checkpoint_seconds=0)
        for event in first.events():
            if isinstance(event, Stepped) and event.step == 2 * INNER_STEPS + 1:
                break
        first.checkpoints.wait()
        again = self.start(name, "transformer", strategy, options, average=DECAY)
        kinds = [event.kind for event in again.events()]
        if kinds[0] != "resumed":
            raise RuntimeError(f"it began anew: {kinds}")
        self.leave(f"{name}-resumed", again.weights())

    def at_rest(self, name: str, options: dict[str, Any]) -> None:
        """The weights of a run with an average whenever all workers have the same, and then the averaged ones."""
        run = self.start(name, "transformer", "diloco", options, average=DECAY)
        found = {f"0/{key}": value for key, value in run.weights().items()}
        for event in run.events():
            if isinstance(event, Stepped) and run.strategy.at_rest:
                found |= {f"{event.step}/{key}": value.clone() for key, value in run.weights().items()}
        self.leave(name, found | {f"average/{key}": value for key, value in run.weights().items()})

    def beside_a_slow_one(self, strategy: str, options: dict[str, Any]) -> None:
        """Figures where the second worker is slow."""
        for kind in (self.world.pulse.seconds, self.world.traffic.bytes):
            kind.clear()
        run = self.start(f"slow-{strategy}", "transformer", strategy, options)
        if self.world.rank == 1:
            run.network.register_forward_pre_hook(lambda *_: time.sleep(SLOW_SECONDS * run.network.training))
        figures = WorkerFigures(self.world, self.out / "workers", apart=run.strategy.tells_apart)
        for event in run.events():
            figures(event)
        told = {**figures.content(), "line": compare(self.world, figures)}
        told["parameters"] = [sum(p.numel() for p in part.parameters()) for part in (run.network, run.network.blocks)]
        self.told[f"slow-{strategy}"] = told

    def leave(self, name: str, weights: dict[str, Tensor]) -> None:
        if self.world.leads:
            save_file({k: v.contiguous().clone() for k, v in weights.items()}, self.out / f"{name}.safetensors")

    def main(self) -> None:
        for network in PRECISE:
            self.case(f"{network}-fp32", network, "fsdp", {})
            self.case(f"{network}-bf16", network, "fsdp", BF16)
            self.case(f"{network}-offload", network, "fsdp", {"cpu_offload": True})
        self.case("empty", "transformer", "fsdp", {"cpu_offload": True}, empty=True)
        often = {"inner_steps": 1, "outer_rate": 1.0, "outer_momentum": 0.0, "compression": "none"}
        plain = {"optimizer": "sgd", "gradient_clip": 0.0, "learning_rate": 0.1, "average": DECAY}
        for strategy, options in {"ddp": {}, "fsdp": {}, "diloco": often}.items():
            self.case(f"average-{strategy}", "transformer", strategy, options, **plain)
        self.case("fsdp", "transformer", "fsdp", {}, average=DECAY)
        self.resumed("fsdp-cut", "fsdp", {})
        self.at_rest("diloco", {"inner_steps": INNER_STEPS})
        self.resumed("diloco-cut", "diloco", {"inner_steps": INNER_STEPS})
        for strategy, options in {"ddp": {}, "fsdp": {}, "diloco": {"inner_steps": INNER_STEPS}}.items():
            self.beside_a_slow_one(strategy, options)
        (self.out / f"{self.world.rank}.json").write_text(json.dumps(self.told))
        self.world.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    Member(Path(sys.argv[1])).main()
