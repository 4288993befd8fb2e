"""One decoder on several processes, each with its share of the heads and of the inner features.

Shoeybi et al. 2019, Megatron-LM (arXiv 1909.08053), section 3: what goes into a branch is split by outputs, what comes
out of it by inputs, so that each branch needs one sum over the processes. Embedding, norms and head are whole
everywhere, and every process ends with the same hidden vectors, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from fastserve.errors import ConfigError
from fastserve.models.decoder import Block, Decoder

BY_OUTPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
BY_INPUTS = ("o_proj", "down_proj")


Sum = Callable[[Tensor], Tensor]
"""A tensor to the sum of it over the processes, in float32: the same in each of them, to the last bit."""


def sum_by_messages(part: Tensor) -> Tensor:
    """`Sum` of the processes of torch's group, wherever they are."""
    wide = part.float().contiguous()
    dist.all_reduce(wide)
    return wide.to(part.dtype)


class SummedLinear(nn.Linear):
    """A share of the inputs of a linear layer without bias; what all shares give is summed over the processes."""

    def __init__(self, inputs: int, outputs: int, sum_up: Sum) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.sum_up = sum_up

    def forward(self, tokens: Tensor) -> Tensor:
        return self.sum_up(functional.linear(tokens, self.weight))


def check(network: Decoder, processes: int) -> None:
    """ConfigError where a decoder cannot be split evenly."""
    sizes = network.sizes
    for name, count in (("key_value_heads", sizes.key_value_heads), ("feedforward", sizes.feedforward)):
        if count % processes:
            raise ConfigError(
                f"a decoder with {name} = {count} cannot be split among {processes} processes: expected a number of "
                f"processes that divides it, or a network with other model.options.{name}"
            )


def share(name: str, weight: Tensor, rank: int, processes: int) -> Tensor:
    """The part of a whole weight that process `rank` has: a view."""
    layer = name.rsplit(".", 2)[-2]
    if layer in BY_OUTPUTS:
        return weight.chunk(processes, 0)[rank]
    if layer in BY_INPUTS:
        return weight.chunk(processes, 1)[rank]
    return weight


def share_of_change(layer: str, down: Tensor, up: Tensor, rank: int, processes: int) -> tuple[Tensor, Tensor]:
    """The part of up @ down, which a LoRA adapter adds to the weight of a layer, that process `rank` has.

    down (rank of the change, in), up (out, rank of the change).
    """
    name = layer.rsplit(".", 1)[-1]
    if name in BY_OUTPUTS:
        up = up.chunk(processes, 0)[rank]
    elif name in BY_INPUTS:
        down = down.chunk(processes, 1)[rank]
    return down, up


def split(
    network: Decoder,
    rank: int,
    processes: int,
    weights: Mapping[str, Tensor] | None = None,
    sum_up: Sum = sum_by_messages,
) -> Decoder:
    """The same network, of which this process keeps its share; all must call it, and then compute in step.

    weights: whole ones by name, for a network on the meta device; only the share of them is read. Without, those that
    the network has. ConfigError where it cannot be split evenly.
    """
    check(network, processes)
    whole = dict(network.state_dict()) if weights is None else weights
    for block in network.model.layers:
        _shrink(block, processes, sum_up)
    network.to_empty(device="cpu" if weights is not None else next(iter(whole.values())).device)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(share(name, whole[name], rank, processes))
    return network


def _shrink(block: nn.Module, processes: int, sum_up: Sum) -> None:
    """Layers of the right shapes, without values."""
    if not isinstance(block, Block):
        raise TypeError(f"{type(block).__name__} is no block of a decoder")
    sizes = block.self_attn.sizes
    block.self_attn.sizes = replace(
        sizes, heads=sizes.heads // processes, key_value_heads=sizes.key_value_heads // processes
    )
    for part in (block.self_attn, block.mlp):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(part, name, _smaller(name, layer, processes, sum_up))


def _smaller(name: str, layer: nn.Linear, processes: int, sum_up: Sum) -> nn.Linear:
    with torch.device("meta"):
        if name in BY_INPUTS:
            return SummedLinear(layer.in_features // processes, layer.out_features, sum_up)
        return nn.Linear(layer.in_features, layer.out_features // processes, bias=False)
