"""What a run tells its watchers. The loop yields these and knows nobody who reads them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened after `step` optimizer steps, in epoch `epoch` (from 0)."""

    kind: ClassVar[str] = "event"
    step: int
    epoch: int

    def to_json(self) -> dict[str, Any]:
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """An earlier process got this far."""

    kind: ClassVar[str] = "resumed"


@dataclass(frozen=True, slots=True)
class Stepped(Event):
    """One optimizer step. `items` are the tokens or n-grams that were read, `rows` the texts.

    padding: of this worker's batch, made as long as its longest text, the share that no text fills.
    """

    kind: ClassVar[str] = "step"
    loss: float
    learning_rate: float
    rows: int
    items: int
    padding: float = 0.0


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """The network on the validation rows. samples: what it writes, where it does (`prompt` and `text` of each)."""

    kind: ClassVar[str] = "evaluation"
    metrics: dict[str, float] = field(default_factory=dict)
    best: bool = False
    samples: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RateReduced(Event):
    """Validation has stopped improving, so the learning rate is multiplied by `factor` from here on."""

    kind: ClassVar[str] = "rate_reduced"
    factor: float


@dataclass(frozen=True, slots=True)
class Skipped(Event):
    """A step of which no update was made: its batch, of `rows` texts, had broken the run."""

    kind: ClassVar[str] = "skipped"
    rows: int


@dataclass(frozen=True, slots=True)
class WentBack(Event):
    """The run had diverged, so it has the state of `step` again. reason: what was wrong, in a sentence.

    broken: the step that was; skipped: whether that one is left out; factor: of the learning rate from here on.
    """

    kind: ClassVar[str] = "went_back"
    reason: str
    broken: int
    skipped: bool
    factor: float


@dataclass(frozen=True, slots=True)
class Checkpointed(Event):
    """The state of this step is kept: once it is written, a killed run resumes at it."""

    kind: ClassVar[str] = "checkpoint"


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The run is over; `best_step` is where the weights that are kept come from."""

    kind: ClassVar[str] = "finished"
    reason: str
    best_step: int
