"""Numbers from here to the device that computes, in such a way that nobody waits."""

from __future__ import annotations

import torch
from torch import Tensor


def send(numbers: Tensor, place: torch.device) -> Tensor:
    """The numbers on a device, once what it computes now is done. On a processor they are the same tensor.

    A CUDA device takes them by itself from memory that is pinned, which torch keeps until then; from any other memory
    it would be waited for.
    """
    if place.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(place, non_blocking=True)
