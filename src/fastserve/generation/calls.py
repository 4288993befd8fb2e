"""How the layers of a network ask their attention, learned by having it read some tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve.models.attention import PackedCausal


@dataclass(frozen=True, slots=True)
class Call:
    """dtype, size: of the heads."""

    scale: float
    window: int | None
    cap: float | None
    dtype: torch.dtype
    size: int


class Recorder(PackedCausal):
    """An attention that remembers how each layer asked it."""

    def __init__(self, offsets: Tensor) -> None:
        super().__init__(offsets)
        self.calls: dict[int, Call] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
        cap: float | None = None,
    ) -> Tensor:
        self.calls[layer] = Call(scale, window, cap, query.dtype, query.shape[-1])
        return super().__call__(layer, query, key, value, scale=scale, window=window, cap=cap)
