"""What one forward pass reads, and what has to be moved before it. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastserve.generation.job import Job


@dataclass(slots=True)
class Work:
    """The job's tokens start to start + count are read; if that is all that it has, the next one is sampled."""

    job: Job
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Place:
    """The job takes a slot. The first `copied` tokens in slot `source`, which may be the same, are copied there."""

    job: Job
    slot: int
    copied: int = 0
    source: int | None = None


@dataclass(frozen=True, slots=True)
class SwapOut:
    """The first `tokens` of the job's cache go to host memory."""

    job: Job
    slot: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SwapIn:
    """They come back, into another slot."""

    job: Job
    slot: int
    tokens: int


Move = Place | SwapOut | SwapIn


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass. Moves are done in their order before it. decode: works of one token; prompt: tokens of all
    other works; cached: tokens of all caches that are attended to, these included; pairs: tokens that each token of the
    other works attends to, in all.

    Several alike may be told as one, whose numbers are the sums of theirs.
    """

    works: tuple[Work, ...]
    moves: tuple[Move, ...]
    decode: int
    prompt: int
    cached: int
    pairs: int = 0

    @property
    def decoding(self) -> int:
        """Jobs that decode, however many steps are told as one."""
        return sum(work.count == 1 for work in self.works)

    @property
    def prompts(self) -> int:
        """Jobs of which more than one token is read."""
        return sum(work.count > 1 for work in self.works)
