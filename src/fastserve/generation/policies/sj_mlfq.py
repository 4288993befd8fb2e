"""Skip-join multi-level feedback queue (Wu et al., Fast Distributed Inference Serving for Large Language Models)."""

from __future__ import annotations

import math
from collections.abc import Collection

from fastserve.generation.job import Job
from fastserve.generation.outlook import Outlook
from fastserve.generation.policies.base import FOREVER, Plain

_APART = 1e9
"""Between the ranks of two levels: more seconds than any clock counts here."""


class SkipJoinMlfq(Plain):
    """Level i has a quantum of base * 2**i seconds, where base is a step of one decoding job.

    An arrival joins the first level whose quantum covers what its prompt takes to read. A job that has had its quantum
    goes a level down; one that has not run for `starved` seconds goes to the top. Within a level, who came there first
    goes first. Unlike the authors' artifact, a job that has not run yet is starved only after that time too, and this
    is looked at all the time rather than once in 1,000 steps.
    """

    preempts = True
    timed = True
    has_levels = True

    def __init__(self, outlook: Outlook, starved: float = 60.0, levels: int = 16) -> None:
        super().__init__(outlook)
        self.starved, self.levels = starved, levels
        self.base = outlook.cost.decode(1)

    def arrive(self, job: Job, cached: int, now: float) -> None:
        prefill = self.outlook.cost.read(max(job.unread - cached, 1))
        self._enter(job, math.ceil(math.log2(max(prefill / self.base, 1.0))), now)

    def charge(self, job: Job, seconds: float, now: float) -> None:
        job.used += seconds
        if job.used >= self._quantum(job):
            self._enter(job, job.level + 1, now)

    def review(self, jobs: Collection[Job], now: float) -> None:
        for job in jobs:
            if job.level and now - job.since >= self.starved:
                self._enter(job, 0, now)

    def steady(self, job: Job, seconds: float) -> int:
        return int((self._quantum(job) - job.used) / seconds) if job.level < self.levels else FOREVER

    def _quantum(self, job: Job) -> float:
        return math.inf if job.level == self.levels else self.base * 2**job.level

    def _enter(self, job: Job, level: int, now: float) -> None:
        job.level, job.used = min(level, self.levels), 0.0
        job.rank = job.level * _APART + now
