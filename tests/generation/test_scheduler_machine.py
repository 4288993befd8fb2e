"""Whatever comes and goes in whatever order: nothing is lost, nothing is held twice, and every job ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from schedules import Machine, job, make

from fastserve.generation.limits import Guards
from fastserve.plugins import POLICIES


class Traffic(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(sorted(POLICIES.builtin)),
        slots=st.integers(1, 4),
        spare=st.integers(0, 3),
        blocks=st.integers(8, 24),
        host_blocks=st.sampled_from([0, 6, 30]),
        drafts=st.sampled_from([0, 3]),
        quantum=st.sampled_from([0.0, 0.5]),
        preemptions=st.sampled_from([0, 2, 100]),
        wait=st.sampled_from([1.0, 1e9]),
        fair=st.sampled_from([0.2, 10.0]),
    )
    def begin(
        self,
        policy: str,
        slots: int,
        spare: int,
        blocks: int,
        host_blocks: int,
        drafts: int,
        quantum: float,
        preemptions: int,
        wait: float,
        fair: float,
    ) -> None:
        guards = Guards(quantum, preemptions, wait, fair)
        self.scheduler = make(
            policy,
            guards,
            slots=slots,
            rows=slots + spare,
            blocks=blocks,
            host_blocks=host_blocks,
            drafts=drafts,
            chunk=8,
        )
        self.machine = Machine(self.scheduler)
        self.next = 0

    @rule(
        prompt=st.integers(1, 12),
        most=st.integers(1, 12),
        priority=st.integers(-2, 2),
        key=st.sampled_from("abc"),
        shared=st.integers(0, 3),
        copies=st.integers(1, 3),
        late=st.booleans(),
    )
    def add(self, prompt: int, most: int, priority: int, key: str, shared: int, copies: int, late: bool) -> None:
        """Prompts whose first blocks are those of others; some with copies; some that came a while ago."""
        whole = prompt // 4
        hashes = [("common", place) if place < shared else (self.next, place) for place in range(whole)]
        arrival = self.machine.now - (0.7 if late else 0.0)
        first = self.next
        for copy in range(copies):
            follows = first if copy else None
            self.scheduler.add(
                job(self.next, prompt, most, arrival, priority=priority, key=key, prefix=hashes, follows=follows),
                self.machine.now,
            )
            self.next += 1
        self.machine.check()

    @precondition(lambda self: self.scheduler.jobs)
    @rule(draw=st.data())
    def cancel(self, draw: st.DataObject) -> None:
        number = draw.draw(st.sampled_from(sorted(self.scheduler.jobs)))
        self.scheduler.cancel(number)
        assert number not in self.scheduler.jobs
        self.machine.check()

    @precondition(lambda self: self.scheduler.jobs)
    @rule(draw=st.data())
    def cancel_between_plan_and_done(self, draw: st.DataObject) -> None:
        number = draw.draw(st.sampled_from(sorted(self.scheduler.jobs)))
        step = self.machine.plan()
        assert step is not None
        self.scheduler.cancel(number)
        self.machine.check()
        self.machine.done(step)

    @rule(ends=st.sets(st.integers(0, 60), max_size=20), tokens=st.integers(1, 3), steps=st.integers(1, 6))
    def work(self, ends: set[int], tokens: int, steps: int) -> None:
        for _ in range(steps):
            had = bool(self.scheduler.jobs)
            step = self.machine.step(ends, 1 + min(tokens - 1, self.scheduler.limits.drafts))
            assert (step is not None) == had
            if step is not None:
                limits = self.scheduler.limits
                assert 0 < len(step.works) <= limits.slots
                assert sum(work.count for work in step.works if work.count > 1) <= limits.chunk
                assert len({work.job.id for work in step.works}) == len(step.works)

    @rule(seconds=st.floats(0.1, 3.0))
    def wait(self, seconds: float) -> None:
        self.machine.now += seconds

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.machine.run()
            cache = self.scheduler.cache
            assert (cache.blocks_at_hand, cache.rows_at_hand) == (cache.limits.blocks, cache.limits.rows)
            assert cache.free_host_blocks == cache.limits.host_blocks
            assert self.scheduler.waiting_tokens == 0


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
