"""What each policy puts first, by what can be known."""

from __future__ import annotations

import pytest
from schedules import Machine, job, make

from fastserve.generation.job import State
from fastserve.generation.lengths import Lengths, bottom, level, steps_to_next
from fastserve.generation.limits import Guards
from fastserve.generation.policies.boost import Boost
from fastserve.generation.scheduler import Scheduler
from fastserve.plugins import POLICIES


def order(scheduler: Scheduler, now: float = 0.0) -> list[int]:
    """Ids in the order in which jobs end, one at a time, from `now` on."""
    machine, found = Machine(scheduler), []
    machine.now = now
    while machine.scheduler.jobs:
        before = set(machine.scheduler.jobs)
        machine.step()
        found += sorted(before - set(machine.scheduler.jobs))
    return found


def test_fcfs_is_the_order_of_arrival() -> None:
    scheduler = make(slots=1)
    for number, arrival in ((0, 2.0), (1, 0.0), (2, 1.0)):
        scheduler.add(job(number, arrival=arrival), 2.0)
    assert order(scheduler) == [1, 2, 0]


def test_priority_goes_first_but_ages() -> None:
    scheduler = make("priority", options={"ageing": 10.0}, slots=1)
    for number, arrival, priority in ((0, 0.0, 1), (1, 9.0, 0), (2, 11.0, 0), (3, 12.0, -1)):
        scheduler.add(job(number, most=2, arrival=arrival, priority=priority), 12.0)
    assert order(scheduler) == [3, 1, 0, 2]


def test_hrrn_weighs_waiting_by_what_has_to_be_read() -> None:
    """At 10 s: 8 s for 0.4 s of reading, 6 s for 0.2 s, 10 s for 0.6 s."""
    scheduler = make("hrrn", slots=1)
    for number, arrival, prompt in ((0, 2.0, 40), (1, 4.0, 20), (2, 0.0, 60)):
        scheduler.add(job(number, prompt=prompt, most=1, arrival=arrival), 10.0)
    assert order(scheduler, 10.0) == [1, 0, 2]


def test_hrrn_counts_only_what_is_not_in_the_cache() -> None:
    scheduler = make("hrrn", slots=1)
    machine = Machine(scheduler)
    scheduler.add(job(0, prompt=40, most=1, prefix=[("p", place) for place in range(10)]))
    machine.run()
    scheduler.add(job(1, prompt=20, most=1, arrival=machine.now))
    scheduler.add(job(2, prompt=41, most=1, arrival=machine.now, prefix=[("p", place) for place in range(10)]))
    machine.now += 10.0
    step = machine.step()
    assert step is not None
    assert step.works[0].job.id == 2


def test_an_arrival_joins_the_level_whose_quantum_covers_its_prompt() -> None:
    """The quantum of level i is 0.1 s * 2 ** i, and a token takes 0.01 s to read."""
    scheduler = make("sj-mlfq")
    for number, (prompt, expected) in enumerate(((1, 0), (10, 0), (11, 1), (20, 1), (21, 2), (160, 4))):
        new = job(number, prompt=prompt)
        scheduler.add(new)
        assert new.level == expected, prompt
    assert scheduler.levels() == {0: 2, 1: 2, 2: 1, 4: 1}
    assert make("boost").levels() == {}


def test_who_used_up_its_quantum_makes_room_for_others() -> None:
    machine = Machine(make("sj-mlfq", slots=1))
    long = job(0, prompt=4, most=40)
    machine.scheduler.add(long)
    machine.step()
    machine.step()
    assert long.level == 1
    machine.scheduler.add(job(1, prompt=4, most=2, arrival=machine.now))
    machine.step()
    assert long.state is State.PAUSED
    machine.run()


def test_a_starved_job_goes_to_the_top_but_not_before() -> None:
    machine = Machine(make("sj-mlfq", options={"starved": 5.0}, slots=1))
    long = job(0, prompt=16, most=40)
    machine.scheduler.add(long)
    for number in range(1, 200):
        machine.scheduler.add(job(number, prompt=4, most=1, arrival=machine.now))
        machine.step()
        if long.started is not None:
            break
    assert long.started is not None
    assert 5.0 <= long.started <= 5.7


def test_boost_puts_short_jobs_before_those_that_came_little_earlier() -> None:
    """Prompts of 100 and 4 tokens, one token to write: about 1.1 and 0.14 s; horizon 10 s."""
    scheduler = make("boost", slots=1)
    for number, arrival, prompt in ((0, 0.0, 100), (1, 5.0, 4), (2, 50.0, 4)):
        scheduler.add(job(number, prompt=prompt, most=1, arrival=arrival), 50.0)
    assert [one.id for one in sorted(scheduler.jobs.values(), key=lambda one: one.rank)] == [1, 0, 2]


def test_the_horizon_of_boost_follows_the_work_that_waits_and_forgets() -> None:
    scheduler = make("boost", options={"share": 0.5, "least": 2.0, "memory": 100.0})
    policy = scheduler.policy
    assert isinstance(policy, Boost)
    assert policy.horizon(0.0) == 2.0
    for number in range(100):
        scheduler.add(job(number, prompt=99, most=1))
    scheduler.plan(0.0)
    assert policy.horizon(0.0) == pytest.approx(100 * (0.99 + 0.1) * 0.5, rel=0.1)
    assert policy.horizon(100.0) == pytest.approx(policy.horizon(0.0) / 2.718, rel=0.01)


@pytest.mark.parametrize("name", sorted(POLICIES.builtin))
def test_no_policy_starves_anybody(name: str) -> None:
    """A long job among an endless stream of short ones, with all guards as they are but a wait of 20 s."""
    machine = Machine(make(name, Guards(wait=20.0), slots=2, rows=4))
    long = job(0, prompt=60, most=60, priority=50)
    machine.scheduler.add(long)
    number = 1
    while long.state is not State.FINISHED:
        while len(machine.scheduler.jobs) < 6:
            machine.scheduler.add(job(number, prompt=4, most=4, arrival=machine.now))
            number += 1
        machine.step()
        assert machine.now < 300.0


def test_classes_of_lengths_are_in_order_and_without_gaps() -> None:
    for tokens in range(1, 5000):
        assert bottom(level(tokens)) <= tokens < bottom(level(tokens) + 1) or level(tokens) == level(tokens + 1)
        assert level(tokens + 1) in (level(tokens), level(tokens) + 1) or tokens < 4
        assert tokens + steps_to_next(tokens) >= bottom(level(tokens) + 1)
    assert level(1 << 40) == 63


def test_half_of_what_may_be_written_is_expected_before_anything_ended() -> None:
    assert Lengths().left(10, 0, 100) == 50
    assert Lengths().left(10, 90, 100) == 5
    assert Lengths().left(10, 99, 100) == 1


def test_lengths_of_prompts_alike_are_learned() -> None:
    lengths = Lengths()
    for _ in range(200):
        lengths.add(10, 20)
        lengths.add(1000, 400)
    assert lengths.left(12, 0, 2000) == pytest.approx(20, rel=0.6)
    assert lengths.left(900, 0, 2000) == pytest.approx(400, rel=0.2)
    assert lengths.left(900, 300, 2000) == pytest.approx(100, rel=0.5)


def test_who_wrote_long_is_expected_to_write_longer() -> None:
    """Nine short texts and a long one: after the short ones' length, only the long one is left to expect."""
    lengths = Lengths()
    for number in range(500):
        lengths.add(10, 500 if number % 10 == 0 else 10)
    assert lengths.left(10, 0, 1000) < 100
    assert lengths.left(10, 20, 1000) > 400


def test_what_was_learned_long_ago_fades() -> None:
    lengths = Lengths()
    for tokens in (400, 20):
        for _ in range(6000):
            lengths.add(10, tokens)
    assert lengths.left(10, 0, 1000) == pytest.approx(20, rel=0.2)
