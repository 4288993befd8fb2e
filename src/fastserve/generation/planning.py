"""How one step is put together: who takes part, what each reads, who has to make room. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastserve.generation.cache import NOTHING, Prefix
from fastserve.generation.job import Job, State
from fastserve.generation.lines import Entry, Standing, merge
from fastserve.generation.step import Move, Place, Step, SwapIn, SwapOut, Work
from fastserve.generation.step_cost import pairs

if TYPE_CHECKING:
    from fastserve.generation.scheduler import Scheduler


class Planning:
    """One plan. Nobody enters or leaves the scheduler's lines before `settle`.

    Jobs come in order: running ones that may not be preempted, then whoever has the lowest rank, of equal ones those
    that run. Each takes what it needs from what is left, and memory also from those who come after it. `forced`: where
    nobody could go on otherwise, memory is taken from protected jobs too.
    """

    def __init__(self, scheduler: Scheduler, *, forced: bool = False) -> None:
        self._scheduler, self._forced = scheduler, forced
        self._cache, self._limits = scheduler.cache, scheduler.limits
        self._budget = scheduler.limits.chunk
        self._open = True
        """Whether jobs without a cache may still be taken up in this step."""
        self.works: list[Work] = []
        self.moves: list[Move] = []
        self._decode = self._cached = self._pairs = 0
        self.taken: set[int] = set()
        self.evicted: dict[int, Job] = {}
        """Who had a cache in place before and has none now."""

    def make(self) -> bool:
        """Choose who takes part; whether anybody does."""
        batch = self._scheduler.batch
        for standing, job in self._candidates():
            if len(self.works) >= batch:
                break
            self._take(standing, job)
        return bool(self.works)

    def step(self) -> Step | None:
        """What was chosen; None where nobody has anything to do."""
        if not self.works:
            return None
        prompt = self._limits.chunk - self._budget
        return Step(tuple(self.works), tuple(self.moves), self._decode, prompt, self._cached, self._pairs)

    def _candidates(self) -> Iterator[Entry]:
        scheduler = self._scheduler
        protected: list[Entry] = []
        free: list[Entry] = []
        for job in scheduler.running.values():
            (protected if scheduler.keeps_place(job) else free).append((scheduler.standing(job), job))
        yield from sorted(protected)
        yield from sorted((scheduler.standing(job), job) for job in scheduler.urgent.values())
        yield from merge(sorted(free), merge(scheduler.ready.ordered(), self._waiting()))

    def _waiting(self) -> Iterator[Entry]:
        for entry in self._scheduler.waiting.ordered():
            if not self._open:
                return
            yield entry

    def _take(self, standing: Standing, job: Job) -> None:
        """Give the job its part in the step, if there is room for it."""
        fresh = job.slot is None
        if job.id in self.evicted or (fresh and not self._open):
            return
        found = self._scheduler.find(job) if job.state is State.WAITING else NOTHING
        unread = job.unread - found.tokens
        if unread > 1 and self._budget < min(unread, self._limits.block_size):
            self._open = False
        elif self._place(standing, job, found) if fresh else self._grow(standing, job):
            self._read(job)
        elif fresh:
            self._open = False

    def _read(self, job: Job) -> None:
        unread = job.unread
        if unread == 1:
            count = 1
            self._decode += 1
        else:
            count = min(unread, self._budget)
            self._budget -= count
            self._pairs += pairs(count, job.computed)
        self._cached += job.computed + count
        self.works.append(Work(job, job.computed, count, count == unread))
        self.taken.add(job.id)

    def _grow(self, standing: Standing, job: Job) -> bool:
        """Room for the next token in the job's row."""
        tokens = job.length + self._limits.drafts
        if self._cache.holds(job, tokens):
            return True
        return self._cache.grow(job, tokens) or (
            self._make_room(standing, self._cache.need(job, tokens), rows=0) and self._cache.grow(job, tokens)
        )

    def _place(self, standing: Standing, job: Job, found: Prefix) -> bool:
        """A row for the job. It must leave a block for each one that already takes part."""
        tokens = job.length + self._limits.drafts
        blocks = self._limits.blocks_of(tokens)
        if not self._make_room(standing, blocks if self._forced else blocks + len(self.works), rows=1):
            return False
        if job.state is State.SWAPPED:
            job.slot = self._cache.swap_in(job, tokens)
            self.moves.append(SwapIn(job, job.slot, job.computed))
        else:
            job.slot = self._cache.place(job, tokens, found)
            job.computed = found.tokens
            self.moves.append(Place(job, job.slot, found.tokens, found.slot))
        return True

    def _make_room(self, standing: Standing, blocks: int, *, rows: int) -> bool:
        """So many blocks and rows at hand, by evicting those that stand behind; False, and nobody evicted, if that is
        not enough."""
        cache, wanted = self._cache, rows
        blocks, rows = blocks - cache.blocks_at_hand, rows - cache.rows_at_hand
        if blocks <= 0 and rows <= 0:
            return True
        if wanted and not (standing[0] < 0 or self._forced or self._scheduler.pace.affords(0.0)):
            return False
        chosen = []
        for victim in self._victims(standing):
            chosen.append(victim)
            blocks, rows = blocks - cache.rows[self._slot(victim)].blocks, rows - 1
            if blocks <= 0 and rows <= 0:
                return self._evict_all(chosen, fresh=wanted > 0, urgent=standing[0] < 0)
        return False

    def _evict_all(self, victims: list[Job], *, fresh: bool, urgent: bool) -> bool:
        """False, and nobody evicted, where a job that is to be taken up is not worth it."""
        seconds = sum(map(self._scheduler.outlook.restore, victims))
        if fresh and not (urgent or self._forced or self._scheduler.pace.affords(seconds)):
            return False
        self._scheduler.pace.restoring += seconds
        for victim in victims:
            self._evict(victim)
        return True

    def _victims(self, standing: Standing) -> list[Job]:
        """Those behind whose cache is the cheapest to bring back, first."""
        scheduler = self._scheduler
        behind = [
            job
            for job in scheduler.resident()
            if job.id not in self.taken
            and scheduler.standing(job) > standing
            and (self._forced or not scheduler.keeps_cache(job))
        ]
        return sorted(behind, key=scheduler.outlook.restore)

    def _evict(self, job: Job) -> None:
        """The job's cache leaves its row: for host memory where that is cheaper than reading again and has room."""
        if self._scheduler.outlook.swaps(job) and self._cache.fits_host(job):
            self.moves.append(SwapOut(job, self._slot(job), job.computed))
            self._cache.swap_out(job)
        else:
            self._cache.release(job)
            job.lost, job.computed = job.computed, 0
        job.slot = None
        self.evicted[job.id] = job

    @staticmethod
    def _slot(job: Job) -> int:
        if job.slot is None:
            raise ValueError(f"job {job.id} has no row")
        return job.slot
