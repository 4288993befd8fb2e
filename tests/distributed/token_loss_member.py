"""Gradients of the loss in chunks as one of several workers: run by test_shared_token_loss.py.

python token_loss_member.py STRATEGY OUT: with the variables of torchrun in the environment, or as STRATEGY `alone`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastserve.config import DistributedConfig
from fastserve.distributed.strategy import pick
from fastserve.distributed.world import World
from fastserve.models import NetworkShape, RaggedTensor, build
from fastserve.models.attention import PackedCausal
from fastserve.tasks.token_loss import NextTokens, token_loss

LENGTHS = [[9, 4], [7, 6]]
"""Tokens of the rows of each worker, of which as many count in both."""


class Loss(nn.Module):
    """What a strategy places: the mean loss of a worker's rows."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        tokens = inputs["tokens"]
        counted = NextTokens.of(tokens)
        hidden = self.network.hidden(tokens.values.long(), PackedCausal(tokens.offsets))[counted.places]
        return token_loss(self.network.head, hidden, counted.targets, counted.weights, chunk=4) / len(counted.targets)


def rows_of(workers: list[int]) -> RaggedTensor:
    values = torch.randint(31, (26,), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    parts = [values[13 * worker : 13 * worker + 13] for worker in workers]
    lengths = [length for worker in workers for length in LENGTHS[worker]]
    return RaggedTensor(torch.cat(parts), torch.tensor([0, *lengths]).cumsum(0))


def main(strategy: str, out: Path) -> None:
    torch.set_num_threads(1)
    alone = strategy == "alone"
    world = None if alone else World.join(torch.device("cpu"), 60)
    for tied in (True, False):
        for checkpointed in (False, True):
            torch.manual_seed(0)
            options = {"layers": 2, "dim": 16, "heads": 2, "tied": tied}
            network: Any = build("decoder-15m", options, NetworkShape({"tokens": 31}, 31), causal=True)
            network.checkpoint_blocks = checkpointed
            module: nn.Module = Loss(network)
            whole = lambda tensor: tensor  # noqa: E731
            if world is not None:
                placer = pick(DistributedConfig(strategy=strategy), world)
                module, whole = placer.place(module, {}), placer.whole
            tokens = rows_of([0, 1] if world is None else [world.rank])
            module({"tokens": tokens}).backward()
            found = {
                name.removeprefix("module."): whole(parameter.grad).contiguous().clone()
                for name, parameter in module.named_parameters()
            }
            if world is None or world.leads:
                save_file(found, out / f"{strategy}-{tied}-{checkpointed}.safetensors")
    if world is not None:
        world.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
