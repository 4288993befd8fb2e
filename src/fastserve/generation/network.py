"""What decoding needs of a network: less than a `CausalNetwork` has, so that it may also be a form of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fastserve.models.causal import Attention


class Decodes(Protocol):
    """layers, longest, hidden: as of a `CausalNetwork`; head: hidden (n, dim) to logits (n, V)."""

    @property
    def layers(self) -> int: ...

    @property
    def longest(self) -> int: ...

    @property
    def head(self) -> Callable[[Tensor], Tensor]: ...

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor: ...


def device_of(network: Any) -> torch.device:
    """Where a network computes."""
    found: torch.device | None = getattr(network, "device", None)
    return found or next(iter(network.head.parameters())).device
