"""Schedulers of a few slots and blocks, and steps that nobody computes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastserve.generation.job import Job, State
from fastserve.generation.limits import Guards, Limits
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.step import Place, Step, SwapIn, SwapOut
from fastserve.generation.step_cost import StepCost

COST = StepCost((1, 2, 64), (0.1, 0.11, 0.2), prompt_token=0.01, cached_token=0.0, swapped_token=0.001)
"""A token of a prompt takes a tenth of a step."""


def make(
    policy: str = "fcfs", guards: Guards | None = None, options: dict[str, Any] | None = None, **limits: Any
) -> Scheduler:
    """A scheduler with few of everything, and no guard against preemption."""
    few = {"slots": 2, "rows": 4, "blocks": 64, "block_size": 4, "chunk": 16}
    return Scheduler.create(
        policy, Limits(**{**few, **limits}, guards=guards or Guards(quantum=0.0)), COST, **(options or {})
    )


def job(number: int, prompt: int = 4, most: int = 8, arrival: float = 0.0, **more: Any) -> Job:
    return Job(number, prompt, most, arrival, **more)


class Machine:
    """Does steps as a runner would, and checks what may never be otherwise."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.rows: dict[int, tuple[int, int]] = {}
        """Slot to whose cache it holds, and how many tokens of it."""
        self.host: dict[int, int] = {}

    def step(self, ended: Collection[int] = (), tokens: int = 1) -> Step | None:
        """Plan, move, compute: the step, or None without work. ended: jobs whose text ends if they write now."""
        step = self.plan()
        if step is not None:
            self.done(step, ended, tokens)
        return step

    def plan(self) -> Step | None:
        """Plan, move and read."""
        step = self.scheduler.plan(self.now)
        self.check()
        for move in step.moves if step is not None else ():
            self._move(move)
        for work in step.works if step is not None else ():
            self._read(work.job, work.start, work.count)
        return step

    def done(self, step: Step, ended: Collection[int] = (), tokens: int = 1) -> None:
        """Every job that samples writes so many tokens, as far as it may."""
        seconds = COST.step(step.decode, step.prompt, step.cached)
        self.now += seconds
        writers = [work.job for work in step.works if work.samples]
        sampled = {one.id: min(tokens, one.max_tokens - one.written) for one in writers}
        for one in writers:
            if one.slot is not None:
                self.rows[one.slot] = (one.id, self.rows[one.slot][1] + sampled[one.id] - 1)
        self.scheduler.done(step, seconds, now=self.now, sampled=sampled, ended=sampled.keys() & set(ended))
        self.check()

    def run(self, steps: int = 10_000) -> int:
        """Until nobody has work; how many steps that took."""
        for number in range(steps):
            if self.step() is None:
                return number
        raise AssertionError(f"{len(self.scheduler.jobs)} jobs are left after {steps} steps")

    def _move(self, move: object) -> None:
        if isinstance(move, Place):
            if move.copied:
                assert move.source is not None
                assert self.rows[move.source][1] >= move.copied
            self.rows[move.slot] = (move.job.id, move.copied)
        elif isinstance(move, SwapOut):
            assert self.rows[move.slot] == (move.job.id, move.tokens)
            self.host[move.job.id] = move.tokens
        else:
            assert isinstance(move, SwapIn)
            assert self.host.pop(move.job.id) == move.tokens
            self.rows[move.slot] = (move.job.id, move.tokens)

    def _read(self, job: Job, start: int, count: int) -> None:
        assert job.slot is not None
        assert self.rows[job.slot] == (job.id, start)
        self.rows[job.slot] = (job.id, start + count)

    def check(self) -> None:
        """Every job is in one state and in one place, and nobody has what there is not."""
        scheduler, limits = self.scheduler, self.scheduler.limits
        scheduler.cache.check()
        followers = [copy.id for copies in scheduler.followers.values() for copy in copies]
        lines = [one.id for one in (*scheduler.ready.jobs(), *scheduler.waiting.jobs())]
        everywhere = [*scheduler.running, *lines, *scheduler.urgent, *followers]
        assert sorted(everywhere) == sorted(scheduler.jobs)
        assert all(one.state is State.RUNNING for one in scheduler.running.values())
        assert all(one.state in (State.PAUSED, State.SWAPPED) for one in scheduler.ready.jobs())
        assert all(one.state is State.WAITING for one in scheduler.waiting.jobs())
        owners = {row.owner: row for row in scheduler.cache.rows if row.owner is not None}
        for one in scheduler.jobs.values():
            assert (one.slot is not None) == (one.state in (State.RUNNING, State.PAUSED))
            assert (one.state is State.SWAPPED) == (one.id in scheduler.cache.host)
            assert one.state is not State.WAITING or one.computed == 0
            if one.slot is not None:
                assert owners[one.id].slot == one.slot
                assert owners[one.id].blocks * limits.block_size >= min(one.computed, one.length)
        assert len(owners) == sum(one.slot is not None for one in scheduler.jobs.values())
        assert len(scheduler.running) <= limits.slots
        assert scheduler.waiting_tokens == sum(one.claim for one in scheduler.jobs.values())
        counts = scheduler.counts
        assert counts.added == counts.finished + counts.cancelled + len(scheduler.jobs)
