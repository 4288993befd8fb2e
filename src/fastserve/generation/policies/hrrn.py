"""Highest response ratio next, by what is left to read of the prompt."""

from __future__ import annotations

from collections.abc import Collection

from fastserve.generation.job import Job
from fastserve.generation.policies.base import Plain


class Hrrn(Plain):
    """(waited + work) / work is the slowdown that a job has had already; the highest goes first, and to its end.

    The work is that of the tokens that are not in the cache, which is known, and not of the text, which is not.
    """

    timed = True

    def arrive(self, job: Job, cached: int, now: float) -> None:
        job.level = max(job.unread - cached, 1)
        self.review([job], now)

    def review(self, jobs: Collection[Job], now: float) -> None:
        for job in jobs:
            job.rank = -max(now - job.arrival, 0.0) / self.outlook.cost.read(job.level)
