"""A machine whose steps take what a profile says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastserve.generation.runner import Part, Runner
from fastserve.generation.step import Move, Place
from fastserve.generation.step_cost import StepCost, pairs

VOCABULARY = 300


class Pretended(Runner):
    """A runner that computes nothing, and a clock that goes on by what its steps would take.

    slowness: in each second, how many times as long; then once.
    """

    def __init__(self, cost: StepCost, *, longest: int = 96, slowness: Sequence[float] = ()) -> None:
        self.slowness = slowness
        self.cost, self.now, self._away = cost, 0.0, {}
        self.network: Any = SimpleNamespace(longest=longest)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def move(self, moves: Iterable[Move]) -> None:
        self.now += self.cost.swapped_token * sum(move.tokens for move in moves if not isinstance(move, Place))

    def read(self, parts: Sequence[Part]) -> Tensor:
        read = [(len(part.ids), part.start) for part in parts if len(part.ids) > 1]
        prompt, attended = sum(count for count, _ in read), sum(pairs(count, start) for count, start in read)
        cached = sum(part.start + len(part.ids) for part in parts)
        slowness = self.slowness[int(self.now)] if self.now < len(self.slowness) else 1.0
        self.now += slowness * self.cost.step(len(parts) - len(read), prompt, cached, attended, len(read))
        return torch.zeros(sum(part.wanted for part in parts), VOCABULARY)
