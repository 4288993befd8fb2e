"""What one worker adds to a checkpoint, copied away from the training that goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastserve.distributed.tree import Tree, pack

STATE, OWN = "state", "own"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the run as a tree with its tensors by name, and that which belongs to this worker alone."""

    step: int
    tree: Tree
    tensors: Mapping[str, Any]
    own_tree: Tree
    own_tensors: Mapping[str, Tensor]

    @classmethod
    def take(
        cls, step: int, state: Any, own: Any, copied: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    ) -> Snapshot:
        """copied: what this worker keeps of the tensors of the run's state."""
        tree, tensors = pack(state, STATE)
        own_tree, own_tensors = pack(own, OWN)
        return cls(
            step,
            tree,
            copied(tensors),
            own_tree,
            {name: on_cpu(tensor) for name, tensor in own_tensors.items()},
        )


def on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy of a plain tensor."""
    if hasattr(tensor, "to_local"):
        raise TypeError("shards are part of the state of several workers, not of one process or of one worker's own")
    if tensor.layout is not torch.strided:
        raise TypeError(f"a checkpoint cannot hold a tensor of layout {tensor.layout}")
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
