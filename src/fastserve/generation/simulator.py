"""The scheduler under a virtual clock: what a trace would have met under a policy, on a machine of a given profile.

It is the very scheduler of the engine; only the step is not computed: a profile says how long it would take. Steps in
which nothing can be decided are not planned one by one. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import DataError, Overloaded
from fastserve.generation.counts import Counts
from fastserve.generation.job import Job
from fastserve.generation.limits import Limits
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.steady import steady_steps
from fastserve.generation.step import Place, Step, Work
from fastserve.generation.step_cost import StepCost
from fastserve.generation.traces import Request, scaled

Times = npt.NDArray[np.float64]
_MOST_JUMPED = 64


@dataclass(frozen=True)
class Outcome:
    """What became of each request. All times are in seconds from its arrival, nan for refused ones.

    first: until the first token; completion: until the last one; slowdown: completion over what it takes where nobody
    else is there. seconds: until the last request ended; busy: of these, in steps. alone: seconds of each request where
    nobody else is there.
    """

    first: Times
    completion: Times
    alone: Times
    preemptions: npt.NDArray[np.int64]
    counts: Counts
    seconds: float
    busy: float
    tokens: int

    @property
    def slowdown(self) -> Times:
        return self.completion / self.alone


class Simulation:
    """One run of `requests`. jump: leave out plans that cannot differ from the one before."""

    def __init__(self, requests: Sequence[Request], scheduler: Scheduler, cost: StepCost, *, jump: bool = True) -> None:
        self.requests, self.scheduler, self.cost, self.jump = requests, scheduler, cost, jump
        self.now = self.busy = 0.0
        self._next = 0
        self._first = np.full(len(requests), np.nan)
        self._end = np.full(len(requests), np.nan)
        self._preemptions = np.zeros(len(requests), np.int64)

    def run(self) -> Outcome:
        """All of it."""
        while self._next < len(self.requests) or self.scheduler.jobs:
            self._arrive()
            self.advance()
        arrivals = np.array([request.arrival for request in self.requests])
        return Outcome(
            self._first - arrivals,
            self._end - arrivals,
            np.array([alone(request, self.cost, self.scheduler.limits) for request in self.requests]),
            self._preemptions,
            self.scheduler.counts,
            self.now,
            self.busy,
            sum(request.prompt + request.output for request in self.requests),
        )

    def advance(self) -> None:
        """One step, and those after it that are certainly alike."""
        step = self.scheduler.plan(self.now)
        if step is None:
            self._idle()
            return
        seconds = self.cost.step(step.decode, step.prompt, step.cached, step.pairs, step.prompts)
        seconds += self._moved(step)
        self._done(step, seconds, 1)
        if self.jump and step.decode == len(step.works):
            self._leap(step)

    def _moved(self, step: Step) -> float:
        """Seconds of the swaps before the step."""
        return self.cost.swapped_token * sum(move.tokens for move in step.moves if not isinstance(move, Place))

    def _arrive(self) -> None:
        """Whoever came during a step is there after it, as an engine takes orders between steps."""
        while self._next < len(self.requests) and self.requests[self._next].arrival <= self.now:
            request = self.requests[self._next]
            job = Job(self._next, request.prompt, request.max_tokens, self.now, request.priority, request.key)
            self._next += 1
            try:
                self.scheduler.add(job, self.now)
            except Overloaded:
                continue

    def _idle(self) -> None:
        """Nothing to do until the next request."""
        if self._next < len(self.requests):
            self.now = self.requests[self._next].arrival
        elif self.scheduler.jobs:
            raise RuntimeError(f"{len(self.scheduler.jobs)} jobs are left that no plan takes up")

    def _done(self, step: Step, seconds: float, tokens: int) -> None:
        """The step, or several alike in which each job wrote `tokens`, took so long."""
        self.now += seconds
        self.busy += seconds
        ended = set()
        for work in step.works:
            job, place = work.job, work.job.id
            if work.samples:
                if not job.written:
                    self._first[place] = self.now
                if job.written + tokens >= self.requests[place].output:
                    self._end[place] = self.now
                    self._preemptions[place] = job.preemptions
                    ended.add(place)
        sampled = {work.job.id: tokens for work in step.works} if tokens > 1 else {}
        self.scheduler.done(step, seconds, now=self.now, sampled=sampled, ended=ended)

    def _leap(self, step: Step) -> None:
        """Steps in which the same jobs write a token each, until one ends or something may be decided."""
        jobs = list(self.scheduler.running.values())
        if len(jobs) != len(step.works):
            return
        count, cached = len(jobs), sum(job.length for job in jobs)
        slowest = self.cost.step(count, 0, cached + count * _MOST_JUMPED)
        left = min(self.requests[job.id].output - job.written for job in jobs) - 1
        most = min(left, steady_steps(self.scheduler, step, slowest), _MOST_JUMPED)
        until = self.requests[self._next].arrival if self._next < len(self.requests) else float("inf")
        if self.scheduler.contended:
            until = min(until, self.scheduler.next_review)
        taken, seconds, planned = 0, 0.0, 0.0
        while taken < most and self.now + seconds < until:
            planned = self.now + seconds
            seconds += self.cost.step(count, 0, cached + count * taken)
            taken += 1
        if taken:
            for job in jobs:
                self.scheduler.cache.grow(job, job.length + taken - 1 + self.scheduler.limits.drafts)
            works = tuple(Work(job, job.computed, 1, True) for job in jobs)
            self.scheduler.counts.steps += taken
            if planned >= self.scheduler.next_review:
                self.scheduler.review_again(planned)
            self._done(Step(works, (), count * taken, 0, 0), seconds, taken)


def alone(request: Request, cost: StepCost, limits: Limits) -> float:
    """Seconds from arrival to the end where nobody else is there and nothing of the prompt is in the cache."""
    starts = range(0, request.prompt, limits.chunk)
    counts = [min(limits.chunk, request.prompt - start) for start in starts]
    reading = sum(cost.read(count, start) for count, start in zip(counts, starts, strict=True) if count > 1)
    cached = sum(count + start for count, start in zip(counts, starts, strict=True))
    decode = request.output - 1
    attended = decode * request.prompt + decode * (decode + 1) // 2
    return len(starts) * cost.decode(0) + reading + decode * cost.decode(1) + cost.cached_token * (cached + attended)


def simulate(
    requests: Sequence[Request], policy: str, limits: Limits, cost: StepCost, *, jump: bool = True, **options: Any
) -> Outcome:
    """What `requests` would have met. DataError for a request that the cache cannot hold."""
    scheduler = Scheduler.create(policy, limits, cost, **options)
    most = limits.blocks * limits.block_size
    for place, request in enumerate(requests, start=1):
        if request.prompt + request.max_tokens > most:
            raise DataError(
                f"request {place} has {request.prompt:,} tokens and up to {request.max_tokens:,} to write, more than "
                f"the {most:,} that the cache holds: give it more"
            )
    return Simulation(requests, scheduler, cost, jump=jump).run()


def capacity_seconds(requests: Sequence[Request], limits: Limits, cost: StepCost) -> float:
    """How long the machine takes for `requests` at full speed.

    They all wait at the start and are served in their order; what was read and written until none waits any more,
    each weighed by its seconds of the machine, gives the speed, so that the last few, alone at the end, do not count.
    """
    simulation = Simulation(scaled(requests, 0.0), Scheduler.create("fcfs", limits, cost), cost)
    scheduler = simulation.scheduler
    simulation._arrive()
    while scheduler.waiting.count:
        simulation.advance()
    token = cost.share(scheduler.batch)
    read = sum(cost.read(request.prompt) for request in requests)
    written = sum(request.output for request in requests)
    share = scheduler.counts.prompt_tokens / sum(request.prompt for request in requests)
    so_far = read * share + token * scheduler.counts.written_tokens
    return simulation.now * (read + token * written) / so_far


def at_load(requests: Sequence[Request], load: float, limits: Limits, cost: StepCost) -> list[Request]:
    """The same requests, arriving at `load` times the speed at which the machine can serve them at most."""
    return scaled(requests, capacity_seconds(requests, limits, cost) / load)
