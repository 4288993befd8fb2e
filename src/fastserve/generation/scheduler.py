"""Which jobs take part in the next step. Decisions only: no clock of its own, no tensors, no tokens.

    scheduler.add(job)
    step = scheduler.plan(now)                     # the runner does its moves, then reads its works' tokens
    scheduler.done(step, seconds, now=now, ended={...})

Every plan is followed by its `done`. Between the two jobs may be added and cancelled.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fastserve.errors import ConfigError, DataError, Overloaded, choices
from fastserve.generation.cache import NOTHING, Prefix, RowCache
from fastserve.generation.counts import Counts, Pace
from fastserve.generation.fairness import Shares
from fastserve.generation.job import Job, State
from fastserve.generation.limits import Limits
from fastserve.generation.lines import Lines, Standing
from fastserve.generation.outlook import Outlook
from fastserve.generation.planning import Planning
from fastserve.generation.policies.base import Policy
from fastserve.generation.step import Step, SwapIn, SwapOut
from fastserve.generation.step_cost import StepCost
from fastserve.plugins import POLICIES

_NOTHING_SAID: Mapping[int, int] = {}
_RESIZED = 64
"""Jobs that end before the size of the batch is looked at again."""
_REVIEWED = 256
"""Jobs that are looked at in each interval of `Guards.review` on average, at most."""


class Scheduler:
    """Jobs, and who has what. batch: how many jobs take part in a step, at most."""

    def __init__(self, limits: Limits, policy: Policy, outlook: Outlook) -> None:
        self.limits, self.policy, self.outlook = limits, policy, outlook
        self.batch = outlook.batch
        self.cache = RowCache(limits)
        self.shares = Shares(limits.guards.fair)
        self.counts = Counts()
        self.jobs: dict[int, Job] = {}
        self.running: dict[int, Job] = {}
        self.ready, self.waiting = Lines(self.shares), Lines(self.shares)
        """Who waits with a cache (paused or swapped), and without one."""
        self.urgent: dict[int, Job] = {}
        """Who waited so long that it goes first; they are in no line."""
        self.followers: dict[int, list[Job]] = {}
        """Job that has not read its prompt yet to copies of it that wait for that; they are in no line either."""
        self.waiting_tokens = 0
        self.next_review = 0.0
        self._late = math.inf
        """When the first of those who wait will have waited for too long."""
        self.pace = Pace(limits.guards.restore)

    @classmethod
    def create(cls, policy: str, limits: Limits, cost: StepCost, **options: Any) -> Scheduler:
        """With the policy of that name and its options; the batch is what the profile says is worth while."""
        outlook = Outlook(cost, cost.best_batch(limits.slots), host=limits.host_blocks > 0)
        make = POLICIES.load(policy)
        known = list(inspect.signature(make).parameters)[1:]
        for name in options:
            if name not in known:
                raise ConfigError(f"policy {policy} has no option '{name}': {choices(name, known)}")
        return cls(limits, make(outlook, **options), outlook)

    # -- who comes and goes

    def add(self, job: Job, now: float | None = None) -> None:
        """A new job. DataError where it could never fit, Overloaded where the queue is full."""
        now = job.arrival if now is None else now
        self._check(job)
        job.since = job.arrival
        leader = None if job.follows is None else self.jobs.get(job.follows)
        follows = leader is not None and leader.computed < job.prompt_length
        job.claim = round(self.outlook.tokens(job)) + (1 if follows else job.prompt_length)
        if self.waiting_tokens and self.waiting_tokens + job.claim > self.limits.max_waiting_tokens:
            self.counts.refused += 1
            raise Overloaded(
                f"the queue has {self.waiting_tokens:,} tokens of at most {self.limits.max_waiting_tokens:,.0f}",
                self.pace.retry_after(self.waiting_tokens + job.claim - self.limits.max_waiting_tokens),
            )
        self.waiting_tokens += job.claim
        self.counts.added += 1
        self.jobs[job.id] = job
        self.shares.arrive(job.key)
        if leader is not None and follows:
            self.followers.setdefault(self._first(leader).id, []).append(job)
        else:
            self._enter(job, now)

    def _check(self, job: Job) -> None:
        if job.id in self.jobs:
            raise ValueError(f"job {job.id} is here already")
        most = self.limits.blocks * self.limits.block_size - self.limits.drafts
        if job.prompt_length < 1 or job.max_tokens < 1:
            raise DataError("a job has at least one token in its prompt and one to write")
        if job.most + 1 > most:
            raise DataError(
                f"{job.prompt_length:,} tokens and {job.max_tokens:,} to write need more than the {most:,} that the "
                "cache holds: shorten the prompt or max_tokens, or give the cache more memory"
            )

    def _first(self, leader: Job) -> Job:
        """Who reads the prompt, where the leader is itself a copy."""
        while leader.follows is not None and leader.follows in self.jobs:
            leader = self.jobs[leader.follows]
        return leader

    def _enter(self, job: Job, now: float) -> None:
        """The job may be taken up from now on."""
        self.policy.arrive(job, self.find(job).tokens, now)
        self._line_up(job)

    def cancel(self, job_id: int) -> None:
        """The job ends, whatever state it is in; what it had is free for the next plan. Unknown ids are ignored."""
        job = self.jobs.get(job_id)
        if job is not None:
            self.counts.cancelled += 1
            self._remove(job)

    def _remove(self, job: Job) -> None:
        self._leave(job)
        if job.slot is not None:
            self.cache.release(job)
            job.slot = None
        elif job.state is State.SWAPPED:
            self.cache.forget_host(job)
        job.state = State.FINISHED
        self.waiting_tokens -= job.claim
        job.claim = 0
        del self.jobs[job.id]
        self.shares.leave(job.key)
        self._promote(self.followers.pop(job.id, []))

    def _leave(self, job: Job) -> None:
        """Out of whatever the job waits or runs in."""
        if job.state is State.RUNNING:
            self.running.pop(job.id, None)
        elif self.urgent.pop(job.id, None) is not None:
            return
        elif job.state is not State.WAITING:
            self.ready.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)
        else:
            for copies in self.followers.values():
                if job in copies:
                    copies.remove(job)

    def _promote(self, copies: list[Job]) -> None:
        """Whom they followed ended before it had read the prompt: the first of them does it."""
        if copies:
            first, *others = copies
            first.follows = None
            for job in others:
                job.follows = first.id
            if others:
                self.followers[first.id] = others
            self._enter(first, first.arrival)

    # -- one step

    def plan(self, now: float) -> Step | None:
        """The next step, or None where there is no work. What it decides has happened then, for all that is counted."""
        if not self.jobs:
            return None
        self.shares.refresh()
        if now >= self.next_review:
            self._review(now)
        planning = Planning(self)
        if not planning.make():
            planning = Planning(self, forced=True)
            planning.make()
        self._settle(planning, now)
        return planning.step()

    def _review(self, now: float) -> None:
        """Whoever waited for too long becomes urgent; ranks that change with time are brought up to date."""
        self.review_again(now)
        if now >= self._late:
            self._hurry(now - self.limits.guards.wait)
        if self.policy.timed:
            self.policy.review([*self.ready.jobs(), *self.waiting.jobs()], now)
            self.ready.sort()
            self.waiting.sort()

    def review_again(self, now: float) -> None:
        """The next review is at the next whole interval, which is longer where many have to be looked at."""
        interval = self.limits.guards.review * (1 + (self.ready.count + self.waiting.count) // _REVIEWED)
        self.next_review = (now // interval + 1) * interval

    def _hurry(self, before: float) -> None:
        """Those who have not run since `before` become urgent."""
        self._late = math.inf
        for lines in (self.ready, self.waiting):
            for job in list(lines.jobs()):
                if job.since <= before:
                    lines.remove(job)
                    job.urgent, job.rank = True, job.since
                    self.urgent[job.id] = job
                else:
                    self._late = min(self._late, job.since + self.limits.guards.wait)

    def _line_up(self, job: Job) -> None:
        """The job waits in a line, with a cache or without."""
        (self.waiting if job.state is State.WAITING else self.ready).add(job)
        self._late = min(self._late, job.since + self.limits.guards.wait)

    @property
    def contended(self) -> bool:
        """Whether somebody waits."""
        return bool(self.ready.count or self.waiting.count or self.urgent)

    def standing(self, job: Job) -> Standing:
        """Where the job stands among all."""
        return (-1 if job.urgent else self.shares.level(job.key), job.rank, job.id)

    def keeps_place(self, job: Job) -> bool:
        """Whether a running job may not be preempted."""
        guards = self.limits.guards
        return (
            not self.policy.preempts
            or job.stint < guards.quantum
            or job.preemptions >= guards.preemptions
            or job.urgent
        )

    def keeps_cache(self, job: Job) -> bool:
        """Whether the job's cache may not be taken from it: also where its end costs less than to bring that back."""
        return (
            job.urgent
            or job.preemptions >= self.limits.guards.preemptions
            or self.outlook.ahead(job) <= self.outlook.restore(job)
        )

    def resident(self) -> Iterator[Job]:
        """All jobs that have a row."""
        for job in (*self.running.values(), *self.ready.jobs(), *self.urgent.values()):
            if job.slot is not None:
                yield job

    def find(self, job: Job) -> Prefix:
        """What of the job's tokens is in some row: a copy has the whole prompt of whom it follows."""
        leader = self.jobs.get(job.follows) if job.follows is not None else None
        if leader is not None and leader.slot is not None and leader.computed >= job.prompt_length:
            return Prefix(min(job.prompt_length, job.length - 1), leader.slot)
        return self.cache.find(job.prefix, job.length - 1) if job.prefix else NOTHING

    def _settle(self, planning: Planning, now: float) -> None:
        """Bring states and lines up to what was planned."""
        for job in [job for job in self.running.values() if job.id not in planning.taken]:
            del self.running[job.id]
            job.preemptions += 1
            self.counts.preemptions += 1
            job.since = now
            self._rest(job)
        for job in planning.evicted.values():
            if job.state is State.PAUSED:
                self._leave(job)
                self._rest(job)
        for work in planning.works:
            if work.job.state is not State.RUNNING:
                self._run(work.job, now)
        self._count(planning)

    def _rest(self, job: Job) -> None:
        """The job does not take part in this step: it waits with its cache, or without one."""
        if job.slot is not None:
            job.state = State.PAUSED
        else:
            job.state = State.SWAPPED if job.id in self.cache.host else State.WAITING
        if job.urgent:
            self.urgent[job.id] = job
        else:
            self._line_up(job)

    def _run(self, job: Job, now: float) -> None:
        """The job takes part from this step on."""
        self._leave(job)
        job.state, job.stint = State.RUNNING, 0.0
        self.running[job.id] = job
        if job.started is None:
            job.started = now
            self.waiting_tokens -= job.claim
            job.claim = 0

    def _count(self, planning: Planning) -> None:
        self.counts.steps += bool(planning.works)
        for move in planning.moves:
            if isinstance(move, SwapOut | SwapIn):
                self.counts.swapped_tokens += move.tokens
            elif move.job.lost:
                self.counts.recomputed_tokens += max(move.job.lost - move.copied, 0)
                move.job.lost = 0
            else:
                self.counts.reused_tokens += move.copied

    def done(
        self,
        step: Step,
        seconds: float,
        *,
        now: float,
        sampled: Mapping[int, int] = _NOTHING_SAID,
        ended: Collection[int] = (),
    ) -> None:
        """The step took so long. sampled: job to tokens that it wrote, where that is not 1; ended: jobs whose text is
        complete (those with max_tokens written end by themselves). Jobs that were cancelled meanwhile are left out."""
        works = [work for work in step.works if work.job.state is State.RUNNING]
        self.pace.measure(step, seconds)
        self.counts.prompt_tokens += step.prompt
        read = sum(self.outlook.cost.read(work.count, work.start) for work in step.works if work.count > 1)
        decoding = max(seconds - read, 0.0) / max(step.decoding, 1)
        for work in works:
            job = work.job
            prompt = work.count > 1
            self.shares.charge(job.key, self.outlook.cost.read(work.count, work.start) if prompt else decoding)
            job.service += seconds
            job.stint += seconds
            job.computed = work.start + work.count
            if work.samples:
                self._wrote(job, sampled.get(job.id, 1), now)
            if len(job.prefix) * self.limits.block_size >= job.computed or prompt:
                self.cache.computed(job)
            if job.id in ended or job.written >= job.max_tokens:
                self._finish(job)
            elif not job.urgent:
                self.policy.charge(job, seconds, now)

    def _wrote(self, job: Job, tokens: int, now: float) -> None:
        """The last token that is written is not read yet."""
        job.written += tokens
        job.computed += tokens - 1
        self.counts.written_tokens += tokens
        for copy in self.followers.pop(job.id, []):
            self._enter(copy, now)

    def _finish(self, job: Job) -> None:
        self.cache.computed(job)
        self.outlook.lengths.add(job.prompt_length, job.written)
        self.counts.finished += 1
        self._remove(job)
        if self.counts.finished % _RESIZED == 0:
            self._resize()

    def _resize(self) -> None:
        """The batch that suits what was read for each token that was written so far."""
        prompt = self.counts.prompt_tokens / self.counts.written_tokens
        self.batch = self.outlook.cost.best_batch(self.limits.slots, prompt=prompt)
        self.outlook.resize(self.batch)

    def levels(self) -> dict[int, int]:
        """Of a policy with levels: how many jobs are in each that has any."""
        return dict(Counter(job.level for job in self.jobs.values())) if self.policy.has_levels else {}
