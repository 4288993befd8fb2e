"""How long nothing can change: what lets a simulator leave out plans that would be like the one before. No torch."""

from __future__ import annotations

import math

from fastserve.generation.lines import Standing, merge
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.step import Step


def steady_steps(scheduler: Scheduler, step: Step, seconds: float) -> int:
    """After `done(step)`: how many more steps of at most `seconds`, a token a job, are certainly planned alike, until
    a job comes or ends or `next_review`."""
    running, limits = scheduler.running.values(), scheduler.limits
    if step.prompt or not running or len(step.works) != len(running):
        return 0
    room = scheduler.cache.blocks_at_hand // len(running) * limits.block_size
    most = min([room, *(scheduler.policy.steady(job, seconds) for job in running)])
    if not scheduler.contended or most <= 0:
        return max(most, 0)
    if len(running) < scheduler.batch or scheduler.shares.several:
        return 0
    return min(most, _unmoved(scheduler, seconds)) if scheduler.policy.preempts else most


def _unmoved(scheduler: Scheduler, seconds: float) -> int:
    """Steps in which nobody who waits takes a place."""
    foremost, running = _foremost(scheduler), scheduler.running.values()
    if any(scheduler.standing(job) > foremost and not scheduler.keeps_place(job) for job in running):
        return 0  # somebody would have its place, but for memory that may be there in the next step
    quantum = [scheduler.limits.guards.quantum - job.stint for job in running if not job.urgent]
    protected = min((left for left in quantum if left > 0), default=math.inf)
    return int(min(protected / seconds, 1 << 30))


def _foremost(scheduler: Scheduler) -> Standing:
    """Where the first of those who wait stands."""
    urgent = sorted((scheduler.standing(job), job) for job in scheduler.urgent.values())
    return next(merge(urgent, merge(scheduler.ready.ordered(), scheduler.waiting.ordered())))[0]
