"""Divergence: who notices it, and what was decided about it. No torch."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fastserve import files

MOST_TIMES = 6
"""How often a run goes back before it is given up."""
LOWERED = 0.5
"""What the learning rate is multiplied by each time."""
WINDOW = 100
"""Latest losses whose median is the usual one."""
FEWEST = 20
"""Losses before which none is a spike."""
RESTLESS = 2.0
"""So many times the usual loss, and the weights are not kept as good ones."""


@dataclass(frozen=True, slots=True)
class Broken:
    """What was wrong with a step. norm: of the gradient; usual: the median of the losses before it."""

    step: int
    loss: float
    norm: float
    usual: float

    def __str__(self) -> str:
        if not math.isfinite(self.loss):
            return f"the loss became {self.loss} at step {self.step}"
        if not math.isfinite(self.norm):
            return f"the norm of the gradient became {self.norm} at step {self.step}"
        return f"the loss became {self.loss:.4g} at step {self.step}, where {self.usual:.4g} was usual"


@dataclass(slots=True)
class Decisions:
    """What a run goes on with after it has diverged. It outlives the process: the same batch would break it again.

    skipped: steps of which no update is made; factor: of the learning rate; times: that the run went back.
    """

    skipped: list[int] = field(default_factory=list)
    factor: float = 1.0
    times: int = 0

    @classmethod
    def read(cls, path: Path) -> Decisions:
        return cls(**json.loads(path.read_text("utf-8"))) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))


class Guard:
    """Looks at each loss of this worker. spike: a loss so many times the usual is broken; 0: only what is no number."""

    def __init__(self, spike: float) -> None:
        self.spike = spike
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.broken: Broken | None = None
        """The first step that was, since the run last went back."""

    @property
    def usual(self) -> float:
        return statistics.median_low(self.losses) if self.losses else math.nan

    def see(self, step: int, loss: float, norm: float) -> None:
        """One step's loss, and the norm of its gradient (0 where it is not known)."""
        if self.broken is None and self._breaks(loss, norm):
            self.broken = Broken(step, loss, norm, self.usual)
        else:
            self.losses.append(loss)

    def _breaks(self, loss: float, norm: float) -> bool:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return True
        return bool(self.spike) and len(self.losses) >= FEWEST and loss > self.spike * self.usual > 0

    @property
    def calm(self) -> bool:
        """Whether the weights now are good ones, as far as the latest loss tells."""
        usual = self.usual
        return self.broken is None and not (usual > 0 and self.losses[-1] > RESTLESS * usual)

    def forget(self, losses: Iterable[float] = ()) -> None:
        """The run has gone back to where these were its latest losses."""
        self.broken = None
        self.losses = deque(losses, maxlen=WINDOW)
