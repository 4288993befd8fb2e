"""Boosted arrival, after Yu and Scully, Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1: short jobs are
served as if they had come earlier, and nobody waits behind those who come much later."""

from __future__ import annotations

import math

from fastserve.generation.job import Job
from fastserve.generation.lengths import steps_to_next
from fastserve.generation.outlook import Outlook
from fastserve.generation.policies.base import Plain


class Boost(Plain):
    """A job's rank is its arrival less a boost that is the larger, the less work is expected of it.

    boost(work) = horizon * ln(1 / (1 - exp(-work / horizon))): without end for the shortest, 0 for jobs much longer
    than `horizon` seconds. A short horizon is first come, first served, a long one is shortest first. The work is what
    is left to read of the prompt, which is known, and what is left to write, as finished texts let expect.
    """

    preempts = True

    def __init__(self, outlook: Outlook, horizon: float = 30.0) -> None:
        super().__init__(outlook)
        self.horizon = horizon

    def arrive(self, job: Job, cached: int, now: float) -> None:
        self._rank(job, cached)

    def charge(self, job: Job, seconds: float, now: float) -> None:
        if job.unread > 1 or job.written <= 1 or job.written >= job.level:
            self._rank(job, 0)

    def steady(self, job: Job, seconds: float) -> int:
        return job.level - job.written - 1

    def _rank(self, job: Job, cached: int) -> None:
        job.level = job.written + max(steps_to_next(job.written), 1)  # until then, what is expected changes little
        work = self.outlook.ahead(job, cached)
        job.rank = job.arrival + self.horizon * math.log(-math.expm1(-work / self.horizon))
