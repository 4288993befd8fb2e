"""First come, first served, and to its end: what other servers do."""

from __future__ import annotations

from fastserve.generation.job import Job
from fastserve.generation.policies.base import Plain


class Fcfs(Plain):
    """Ranks are arrival times."""

    def arrive(self, job: Job, cached: int, now: float) -> None:
        job.rank = job.arrival
