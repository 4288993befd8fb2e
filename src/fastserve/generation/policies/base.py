"""What a scheduling policy decides: the rank of each job, and whether a better rank takes a place from a worse one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from fastserve.generation.job import Job
from fastserve.generation.outlook import Outlook

FOREVER = 1 << 30


class Policy(Protocol):
    """Sets `job.rank`, seconds or any other number: the lowest goes first, and only a strictly lower one preempts.

    It may look at what can be known: the prompt's length, what is written so far, what may be written at most, times,
    and how long finished texts became. Guards, memory and fairness between keys are the scheduler's.
    """

    preempts: bool
    """Whether a job that waits may take the place of one that runs."""
    timed: bool
    """Whether ranks of jobs that wait change with time: `review` is called every so often."""
    has_levels: bool
    """Whether `job.level` is a level of a queue, to be counted."""

    def arrive(self, job: Job, cached: int, now: float) -> None:
        """A new job, of whose prompt `cached` tokens need not be read."""
        ...

    def charge(self, job: Job, seconds: float, now: float) -> None:
        """The job was part of steps of so many seconds."""
        ...

    def review(self, jobs: Collection[Job], now: float) -> None:
        """These are all that wait, but for urgent ones."""
        ...

    def steady(self, job: Job, seconds: float) -> int:
        """For how many steps of `seconds`, a token each, the rank of a running job certainly stays as it is."""
        ...


class Plain:
    """A policy whose ranks never change after arrival; others say what is different."""

    preempts = False
    timed = False
    has_levels = False

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook

    def charge(self, job: Job, seconds: float, now: float) -> None:
        pass

    def review(self, jobs: Collection[Job], now: float) -> None:
        pass

    def steady(self, job: Job, seconds: float) -> int:
        return FOREVER
