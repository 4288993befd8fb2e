"""What happened since a scheduler began, and how fast it goes. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastserve.generation.step import Step

_SPEED_SECONDS = 10.0
_LONGEST_RETRY = 60
_BUSY_BEFORE = 60.0
"""Seconds that count as worked before the first step, so that a new scheduler may evict too."""


@dataclass(slots=True)
class Counts:
    """Since the start. added = finished + cancelled + jobs that are there; refused ones were never added."""

    added: int = 0
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    steps: int = 0
    preemptions: int = 0
    """How often a job that ran had to wait although it could have gone on."""
    swapped_tokens: int = 0
    """To host memory, and back again."""
    recomputed_tokens: int = 0
    """Read again after their cache was dropped."""
    reused_tokens: int = 0
    """Of prompts, whose cache was there already."""
    prompt_tokens: int = 0
    written_tokens: int = 0


class Pace:
    """Tokens a second over the last steps, and how much of the time goes into what had been done before.

    restore: the share of the time that this may take (`Guards.restore`).
    """

    def __init__(self, restore: float) -> None:
        self.restore = restore
        self.speed = self.busy = self.restoring = 0.0

    def measure(self, step: Step, seconds: float) -> None:
        """The step took so long."""
        self.busy += seconds
        if seconds > 0:
            keep = math.exp(-seconds / _SPEED_SECONDS)
            self.speed = keep * self.speed + (1 - keep) * (step.prompt + step.decode) / seconds

    def retry_after(self, tokens: float) -> int:
        """Whole seconds until the queue should have room for so many tokens more than now."""
        return max(1, min(math.ceil(tokens / max(self.speed, 1e-9)), _LONGEST_RETRY))

    def affords(self, seconds: float) -> bool:
        """Whether so much may be spent on bringing caches back that are evicted for the sake of others."""
        return self.restoring + seconds <= self.restore * (self.busy + _BUSY_BEFORE)
