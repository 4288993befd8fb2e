"""What a job is expected to cost yet, by its lengths, the step cost and how long texts become. No torch."""

from __future__ import annotations

from fastserve.generation.job import Job
from fastserve.generation.lengths import Lengths
from fastserve.generation.step_cost import StepCost


class Outlook:
    """Seconds of the machine, when `batch` jobs share it. host: whether caches may go to host memory."""

    def __init__(self, cost: StepCost, batch: int, *, host: bool = False) -> None:
        self.cost, self.host = cost, host
        self.lengths = Lengths()
        self.resize(batch)

    def resize(self, batch: int) -> None:
        """So many jobs share the machine from now on."""
        self.batch = batch
        self._token = self.cost.share(batch)

    def ahead(self, job: Job, cached: int = 0) -> float:
        """What the job still takes, as expected: what it has to read, of which `cached` tokens are there, and write."""
        unread = max(job.unread - cached, 1)
        return self.cost.read(unread, job.computed + cached) + self.tokens(job) * self._token

    def tokens(self, job: Job) -> float:
        """How many more tokens it is expected to write."""
        return self.lengths.left(job.prompt_length, job.written, job.max_tokens)

    def restore(self, job: Job) -> float:
        """What it would take to have the job's cache back, the cheaper way."""
        return self.cost.swap(job.computed) if self.swaps(job) else self.cost.read(job.computed)

    def swaps(self, job: Job) -> bool:
        """Whether bringing the cache to host memory and back is possible, and cheaper than reading the tokens again."""
        return self.host and self.cost.swap(job.computed) < self.cost.read(job.computed)
