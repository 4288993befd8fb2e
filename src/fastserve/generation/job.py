"""A text that is being written, as the scheduler sees it: lengths, times and where its cache is. No torch."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


class State(enum.Enum):
    """Where a job stands. Only RUNNING, PAUSED and SWAPPED jobs have something in a cache."""

    WAITING = "waiting"
    """Nothing of it is in a cache: it has not begun, or it was dropped and will be read again."""
    RUNNING = "running"
    """Part of the step that is being computed, or was computed last."""
    PAUSED = "paused"
    """Its cache is kept in its slot."""
    SWAPPED = "swapped"
    """Its cache is in host memory."""
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Job:
    """A text of a request (one of its n copies).

    arrival: seconds on the scheduler's clock. priority: lower is more important. key: who asked; keys share fairly.
    prefix: a hash of each whole block of the prompt, each over all before it, salted by whatever must not be shared
    across (key, adapter); whoever adds the job may append those of what it wrote before it ends. follows: a copy waits
    until the job of this id has read the prompt, and takes that over.
    """

    id: int
    prompt_length: int
    max_tokens: int
    arrival: float
    priority: int = 0
    key: str = ""
    prefix: Sequence[Hashable] = ()
    follows: int | None = None

    state: State = State.WAITING
    computed: int = 0
    """Its tokens in the cache."""
    written: int = 0
    slot: int | None = None
    service: float = 0.0
    """Seconds of all steps that it was part of."""
    stint: float = 0.0
    """Of these, since it was last taken up."""
    since: float = 0.0
    """When it last stopped running, or arrived."""
    started: float | None = None
    """When it was first taken up."""
    preemptions: int = 0
    urgent: bool = False
    """It waited as long as anyone may: it goes first and is not preempted again."""
    rank: float = 0.0
    """The policy's: the lowest goes first."""
    level: int = 0
    used: float = 0.0
    """Of a policy with levels: the job's, and its seconds of service there."""
    claim: int = 0
    """Tokens that it counts for in the bounded queue until it begins."""
    lost: int = 0
    """Tokens that were in the cache when it was dropped."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what is written."""
        return self.prompt_length + self.written

    @property
    def unread(self) -> int:
        """Tokens to read before the next one is sampled; 1 when it decodes."""
        return self.prompt_length + self.written - self.computed

    @property
    def most(self) -> int:
        """Most tokens that its cache may ever hold: the last one that is written is not read."""
        return self.prompt_length + self.max_tokens - 1
