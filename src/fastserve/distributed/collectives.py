"""What shards exchange, counted and told apart from computing: torch's own collectives, which say what they do."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from fastserve.distributed.world import World


class Gather(DefaultAllGather):
    """Puts weights together. On a processor it lasts as long as its call; a GPU does it beside other work.

    module: in whose evaluation it is no part of a step.
    """

    def __init__(self, world: World, module: nn.Module) -> None:
        self.world, self.module = world, module

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        kind = "weights" if self.module.training else "evaluation"
        self.world.traffic.gathered(kind, input_tensor.nbytes)
        with self.world.doing(kind):
            return super().__call__(output_tensor, input_tensor, group, async_op)


class Scatter(DefaultReduceScatter):
    """Adds gradients up; each worker keeps the sum of its shard.

    gloo sums the whole for everybody whatever it is asked for, and its reduce-scatter takes 2 to 2.5 times as long as
    its all-reduce of the same bytes.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        self.world.traffic.scattered("gradients", input_tensor.nbytes)
        with self.world.doing("gradients"):
            if input_tensor.device.type != "cpu":
                return super().__call__(output_tensor, input_tensor, group, op, async_op)
            dist.all_reduce(input_tensor, op, group)
            return output_tensor.copy_(input_tensor.view(dist.get_world_size(group), -1)[dist.get_rank(group)])
