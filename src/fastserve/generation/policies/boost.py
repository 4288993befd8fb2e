"""Boosted arrival, after Yu and Scully, Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1: short jobs are
served as if they had come earlier, and nobody waits behind those who come much later."""

from __future__ import annotations

import math
from collections.abc import Collection

from fastserve.generation.job import Job
from fastserve.generation.lengths import steps_to_next
from fastserve.generation.outlook import Outlook
from fastserve.generation.policies.base import Plain


class Boost(Plain):
    """A job's rank is its arrival less a boost that is the larger, the less work is expected of it.

    boost(work) = horizon * ln(1 / (1 - exp(-work / horizon))): without end for the shortest, 0 for jobs much longer
    than the horizon. A short horizon is first come, first served, a long one is shortest first. The work is what is
    left to read of the prompt, which is known, and what is left to write, as finished texts let expect.

    The theory's horizon is how slowly the tail of waiting times falls. Here it is `share` of the most work that waited
    at once, which is forgotten over `memory` seconds, and at least `least` seconds.
    """

    preempts = True
    timed = True

    def __init__(self, outlook: Outlook, share: float = 0.2, least: float = 10.0, memory: float = 1800.0) -> None:
        super().__init__(outlook)
        self.share, self.least, self.memory = share, least, memory
        self._peak, self._peak_time = 0.0, 0.0

    def arrive(self, job: Job, cached: int, now: float) -> None:
        self._judge(job, cached, now)

    def charge(self, job: Job, seconds: float, now: float) -> None:
        if job.unread > 1 or job.written <= 1 or job.written >= job.level:
            self._judge(job, 0, now)

    def review(self, jobs: Collection[Job], now: float) -> None:
        waiting = sum(job.used for job in jobs)
        if waiting >= self._kept(now):
            self._peak, self._peak_time = waiting, now
        horizon = self.horizon(now)
        for job in jobs:
            _rank(job, horizon)

    def steady(self, job: Job, seconds: float) -> int:
        return job.level - job.written - 1

    def horizon(self, now: float) -> float:
        """Seconds: the longer, the more the shortest go first."""
        return max(self.least, self.share * self._kept(now))

    def _kept(self, now: float) -> float:
        return self._peak * math.exp(-(now - self._peak_time) / self.memory)

    def _judge(self, job: Job, cached: int, now: float) -> None:
        """Expect the job's work anew; `level` is how much it will have written when that changes next."""
        job.level = job.written + max(steps_to_next(job.written), 1)
        job.used = self.outlook.ahead(job, cached)
        _rank(job, self.horizon(now))


def _rank(job: Job, horizon: float) -> None:
    job.rank = job.arrival + horizon * math.log(-math.expm1(-job.used / horizon))
