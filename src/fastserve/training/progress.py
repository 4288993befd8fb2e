"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """How far the run is, and what it has found."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_step: int = 0
    best_value: float | None = None
    evaluations_without_gain: int = 0
    plateau: int = 0
    rate_factor: float = 1.0
    micro_batch: int = 0
    """Rows or tokens that a worker computes at once; 0: all of its part of a step."""
    finished: str = ""
    """Why the run is over; empty while it goes on."""

    @property
    def over(self) -> bool:
        return self.finished != ""
