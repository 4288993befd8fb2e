"""A network of one's own that is slow, so that something can happen to its workers, and that fails where it is told to.

$FAULT is KIND:RANK:STEP: `raise` an exception in that worker at that step, `hang` in it, or ask for more
`memory` than there is.
"""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn


class Faulty(nn.Module):
    def __init__(self, vocabulary_size: int, num_labels: int, pause_seconds: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary_size, 16, padding_idx=0)
        self.out = nn.Linear(16, num_labels)
        self.pause_seconds = pause_seconds
        self.steps = 0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.training:
            time.sleep(self.pause_seconds)
            self._fail()
        outputs: Tensor = self.out(self.table(ids).sum(1) / mask.sum(1, keepdim=True))
        if self.training and outputs.requires_grad:
            outputs.register_hook(lambda _: self.stepped(ids))
        return outputs

    def stepped(self, ids: Tensor) -> None:
        """A backward pass has begun: unlike a forward pass, which may be a trial, it belongs to a step."""
        self.steps += 1

    def _fail(self) -> None:
        kind, rank, step = os.environ.get("FAULT", "none:0:0").split(":")
        if os.environ.get("RANK", "0") != rank or self.steps + 1 != int(step):
            return
        if kind == "raise":
            raise ValueError("the ninth life is gone")
        if kind == "memory":
            torch.empty(1 << 60, dtype=torch.uint8)
        if kind == "hang":
            self._fall_asleep()

    def _fall_asleep(self) -> None:
        torch.zeros(1)
        time.sleep(3600)
