"""What the scheduler may use, and what it may never do to a job. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Guards:
    """What holds under every policy.

    quantum: seconds that a job runs before it may be preempted. preemptions: how often that may happen to it. wait: a
    job that has not run for so many seconds goes first, the longest waiting one before others, and is not preempted
    again. fair: seconds of service that a key may be ahead of the key with the least, while that one has work. restore:
    share of the time that may go into bringing back caches which were evicted in order to take up other jobs (where
    those that run need memory, it is taken all the same). review: seconds between two looks at how long jobs wait.
    """

    quantum: float = 0.1
    preemptions: int = 16
    wait: float = 120.0
    fair: float = 10.0
    restore: float = 0.02
    review: float = 0.25


@dataclass(frozen=True, slots=True)
class Limits:
    """How much there is of everything.

    slots: most jobs in a step. rows: most jobs whose cache is kept in place, running or paused. blocks: of block_size
    tokens, for all of them together. host_blocks: for caches that are swapped out. chunk: most tokens of a step that
    are read beyond one for each job. drafts: tokens beyond its own that a step may bring a job that decodes.
    max_waiting_tokens: of jobs that have not begun, the prompt and what they are expected to write.
    """

    slots: int = 64
    rows: int = 128
    blocks: int = 8192
    block_size: int = 16
    host_blocks: int = 0
    chunk: int = 512
    drafts: int = 0
    max_waiting_tokens: float = math.inf
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        for name in ("slots", "rows", "blocks", "block_size", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.rows < self.slots:
            raise ConfigError(
                f"rows = {self.rows} but slots = {self.slots}: every job of a step needs its cache in place, so give "
                "at least as many rows as slots"
            )

    def blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.block_size)
