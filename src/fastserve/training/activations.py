"""What the forward pass keeps for the backward pass: how much it is, and how to keep less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastserve.errors import ConfigError


def checkpoint_activations(network: nn.Module) -> None:
    """Let the network keep the inputs of its blocks alone. ConfigError where it cannot."""
    if not hasattr(network, "checkpoint_blocks"):
        raise ConfigError(
            f"train.checkpoint_activations: {type(network).__name__} has no blocks that can be computed again; leave "
            "it out, or set a smaller train.micro_batch"
        )
    cast(Any, network).checkpoint_blocks = True


class Kept:
    """Bytes by the address of what is kept."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def see(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not tensor.is_sparse and not hasattr(tensor, "to_local"):
            storage = tensor.untyped_storage()
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


@contextmanager
def watching() -> Iterator[Kept]:
    """While entered, what a forward pass keeps is counted."""
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda tensor: tensor):
        yield kept
