"""More important first, and whoever waits becomes more important."""

from __future__ import annotations

from fastserve.generation.job import Job
from fastserve.generation.outlook import Outlook
from fastserve.generation.policies.base import Plain


class Priority(Plain):
    """A level of priority is worth `ageing` seconds of waiting: a job of priority 1 goes before one of priority 0 that
    came so much later. All age alike, so that ranks stay as they are."""

    preempts = True

    def __init__(self, outlook: Outlook, ageing: float = 30.0) -> None:
        super().__init__(outlook)
        self.ageing = ageing

    def arrive(self, job: Job, cached: int, now: float) -> None:
        job.rank = job.arrival + job.priority * self.ageing
