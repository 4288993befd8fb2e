"""Guards hold under every policy; memory is taken from whom it costs least; keys share; who leaves, leaves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedules import COST, Machine, job, make

from fastserve.errors import ConfigError, DataError, Overloaded
from fastserve.generation.job import State
from fastserve.generation.limits import Guards, Limits
from fastserve.generation.step import Place, SwapIn, SwapOut


def test_a_prompt_is_read_in_chunks_beside_those_that_write() -> None:
    machine = Machine(make(chunk=16))
    machine.scheduler.add(job(0, prompt=4))
    machine.step()
    machine.scheduler.add(job(1, prompt=40))
    found = []
    for _ in range(4):
        step = machine.step()
        assert step is not None
        found.append([(work.job.id, work.start, work.count, work.samples) for work in step.works])
    assert found == [
        [(0, 4, 1, True), (1, 0, 16, False)],
        [(0, 5, 1, True), (1, 16, 16, False)],
        [(0, 6, 1, True), (1, 32, 8, True)],
        [(0, 7, 1, True), (1, 40, 1, True)],
    ]


def test_equal_ranks_preempt_nobody() -> None:
    machine = Machine(make("priority", slots=1))
    machine.scheduler.add(job(0))
    machine.step()
    machine.scheduler.add(job(1, priority=0, arrival=0.0))
    step = machine.step()
    assert step is not None
    assert [work.job.id for work in step.works] == [0]


def test_a_better_rank_takes_the_place_and_gives_it_back_with_the_cache_kept() -> None:
    machine = Machine(make("priority", slots=1))
    machine.scheduler.add(job(0, most=6))
    machine.step()
    machine.step()
    urgent = job(1, most=3, priority=-1)
    machine.scheduler.add(urgent)
    machine.step()
    assert machine.scheduler.jobs[0].state is State.PAUSED
    assert machine.run() == 2 + 4
    assert machine.scheduler.counts.preemptions == 1
    assert machine.scheduler.counts.recomputed_tokens == 0


def test_nobody_is_preempted_within_the_quantum() -> None:
    machine = Machine(make("priority", Guards(quantum=1.0), slots=1))
    machine.scheduler.add(job(0, prompt=1, most=100))
    machine.step()
    machine.scheduler.add(job(1, priority=-1))
    while machine.scheduler.jobs[0].state is State.RUNNING:
        machine.step()
    assert machine.scheduler.jobs[0].service == pytest.approx(1.0, abs=0.11)
    assert machine.scheduler.jobs[0].service >= 1.0


def test_nobody_is_preempted_more_often_than_the_cap() -> None:
    machine = Machine(make("priority", Guards(quantum=0.0, preemptions=3), slots=1))
    machine.scheduler.add(job(0, most=50))
    machine.step()
    for number in range(1, 9):
        machine.scheduler.add(job(number, most=2, priority=-1))
        for _ in range(4):
            machine.step()
    assert machine.scheduler.jobs[0].preemptions == 3
    machine.run()


def test_whoever_waited_long_enough_goes_first_and_stays() -> None:
    """A stream of more important jobs fills the machine; the bound holds all the same."""
    machine = Machine(make("priority", Guards(quantum=0.0, wait=5.0), slots=1))
    poor = job(0, most=10, priority=100)
    machine.scheduler.add(poor)
    number = 1
    while poor.state is not State.FINISHED:
        if len(machine.scheduler.jobs) < 3:
            machine.scheduler.add(job(number, most=4, arrival=machine.now, priority=-5))
            number += 1
        machine.step()
        assert machine.now < 5.0 + 0.25 + 2 * 10
    assert poor.urgent
    assert poor.started is not None
    assert 5.0 <= poor.started <= 5.0 + 0.25 + 0.3
    assert poor.preemptions == 0


def test_memory_for_those_that_run_is_taken_from_the_last_that_came() -> None:
    machine = Machine(make(slots=2, blocks=6))
    for number in range(2):
        machine.scheduler.add(job(number, prompt=8, most=16, arrival=float(number)))
    while machine.scheduler.counts.recomputed_tokens == 0:
        assert machine.step() is not None
    assert machine.scheduler.jobs.keys() == {1}  # it was dropped when blocks ran out, and came back when 0 had ended
    assert machine.scheduler.jobs[1].preemptions == 1
    machine.run()
    assert machine.scheduler.counts.finished == 2


def test_a_cache_goes_to_host_memory_where_that_is_cheaper_than_reading_again() -> None:
    machine = Machine(make("priority", slots=1, rows=1, host_blocks=8))
    machine.scheduler.add(job(0, prompt=16, most=4))
    machine.step()
    machine.scheduler.add(job(1, most=1, priority=-1))
    step = machine.step()
    assert step is not None
    assert [type(move) for move in step.moves] == [SwapOut, Place]
    assert machine.scheduler.jobs[0].state is State.SWAPPED
    step = machine.step()
    assert step is not None
    assert [type(move) for move in step.moves] == [SwapIn]
    machine.run()
    assert (machine.scheduler.counts.swapped_tokens, machine.scheduler.counts.recomputed_tokens) == (32, 0)


def test_nobody_near_the_end_loses_the_cache_for_less_than_bringing_it_back() -> None:
    """16 tokens of a prompt take 0.16 s to read again; the one token that is left takes a step of 0.1 s."""
    machine = Machine(make("priority", slots=1, rows=1))
    machine.scheduler.add(job(0, prompt=16, most=2))
    machine.step()
    machine.scheduler.add(job(1, most=1, priority=-1))
    step = machine.step()
    assert step is not None
    assert [work.job.id for work in step.works] == [0]


def test_the_cheapest_cache_is_evicted_first() -> None:
    machine = Machine(make("priority", slots=2, rows=2))
    machine.scheduler.add(job(0, prompt=16, most=40))
    machine.scheduler.add(job(1, prompt=4, most=40))
    machine.step()
    machine.step()
    machine.scheduler.add(job(2, most=1, priority=-1))
    machine.step()
    assert [machine.scheduler.jobs[number].computed > 0 for number in (0, 1)] == [True, False]


def test_evictions_for_the_sake_of_others_take_a_bounded_share_of_the_time() -> None:
    machine = Machine(make("priority", Guards(quantum=0.0, restore=0.0), slots=1, rows=1))
    machine.scheduler.add(job(0, prompt=16, most=40))
    machine.step()
    machine.scheduler.add(job(1, most=1, priority=-1))
    machine.run()
    assert machine.scheduler.counts.recomputed_tokens == 0
    assert machine.scheduler.counts.preemptions == 0


def test_keys_share_whatever_they_ask() -> None:
    """One key has thirty jobs, another one three that came later: they do not wait for all thirty."""
    machine = Machine(make(guards=Guards(fair=0.5), slots=1))
    for number in range(30):
        machine.scheduler.add(job(number, most=4, key="many"))
    few = [job(100 + number, most=4, arrival=1.0, key="few") for number in range(3)]
    machine.step()
    for one in few:
        machine.scheduler.add(one)
    while few[-1].state is not State.FINISHED:
        machine.step()
    assert machine.scheduler.counts.finished <= 3 + 3 + 4
    machine.run()


def test_a_key_that_was_away_saved_nothing_up() -> None:
    machine = Machine(make(guards=Guards(fair=0.5), slots=1))
    shares = machine.scheduler.shares
    machine.scheduler.add(job(0, most=60, key="here"))
    machine.run()
    machine.scheduler.add(job(1, most=60, key="here"))
    machine.scheduler.add(job(2, most=60, key="new"))
    machine.step()
    assert shares.service["new"] >= shares.service["here"] - 0.5


def test_copies_wait_for_the_first_and_take_its_prompt_over() -> None:
    machine = Machine(make(slots=4, rows=4))
    machine.scheduler.add(job(0, prompt=20))
    for number in (1, 2):
        machine.scheduler.add(job(number, prompt=20, follows=0))
    works = [step.works for step in (machine.step(), machine.step()) if step is not None]
    assert [[work.job.id for work in each] for each in works] == [[0], [0]]
    step = machine.step()
    assert step is not None
    source = machine.scheduler.jobs[0].slot
    assert [(move.copied, move.source) for move in step.moves if isinstance(move, Place)] == [(19, source)] * 2
    assert [work.count for work in step.works] == [1, 1, 1]
    machine.run()


def test_the_first_copy_takes_over_from_one_that_leaves_while_it_reads() -> None:
    machine = Machine(make(slots=4, rows=4))
    machine.scheduler.add(job(0, prompt=40))
    for number in (1, 2):
        machine.scheduler.add(job(number, prompt=40, follows=0))
    machine.step()
    machine.scheduler.cancel(0)
    machine.check()
    machine.run()
    counts = machine.scheduler.counts
    assert (counts.finished, counts.prompt_tokens) == (2, 16 + 40)


def test_a_prompt_whose_beginning_is_known_is_read_from_there() -> None:
    machine = Machine(make())
    machine.scheduler.add(job(0, prompt=12, most=1, prefix=["a", "b", "c"]))
    machine.run()
    machine.scheduler.add(job(1, prompt=15, most=1, prefix=["a", "b", "x"]))
    machine.scheduler.add(job(2, prompt=12, most=1, prefix=["a", "b", "c"]))
    machine.run()
    assert machine.scheduler.counts.reused_tokens == 8 + 8  # a prompt's last token is always read


def test_what_was_written_is_a_prefix_too_if_its_hashes_are_given() -> None:
    machine = Machine(make())
    first = job(0, prompt=4, most=5, prefix=["a"])
    machine.scheduler.add(first)
    for _ in range(4):
        machine.step()
    first.prefix = ["a", "b"]
    machine.run()
    machine.scheduler.add(job(1, prompt=10, most=1, prefix=["a", "b"]))
    machine.run()
    assert machine.scheduler.counts.reused_tokens == 8


def test_the_queue_is_bounded_in_tokens_and_says_when_to_come_again() -> None:
    machine = Machine(make(max_waiting_tokens=100))
    for number in range(4):
        machine.scheduler.add(job(number, prompt=20, most=8))
    with pytest.raises(Overloaded, match="the queue has 96 tokens of at most 100") as refused:
        machine.scheduler.add(job(9, prompt=20, most=8))
    assert refused.value.retry_after >= 1
    assert machine.scheduler.counts.refused == 1
    machine.step()
    machine.scheduler.add(job(9, prompt=20, most=8))
    machine.run()
    assert machine.scheduler.counts.finished == 5


def test_a_job_alone_is_never_refused() -> None:
    machine = Machine(make(max_waiting_tokens=10))
    machine.scheduler.add(job(0, prompt=20))
    machine.run()
    assert machine.scheduler.counts.finished == 1


def test_what_can_never_fit_is_said_at_once() -> None:
    with pytest.raises(DataError, match="need more than the 256 that the cache holds"):
        make(blocks=64).add(job(0, prompt=200, most=57))
    with pytest.raises(DataError, match="at least one token"):
        make().add(job(0, prompt=0))
    with pytest.raises(ConfigError, match="at least as many rows as slots"):
        Limits(slots=8, rows=4)
    with pytest.raises(ConfigError, match=r"no option 'horizon'.*available: ageing"):
        make("priority", options={"horizon": 3})


def test_the_batch_is_what_the_profile_says_is_worth_while() -> None:
    assert COST.best_batch(64) == 62  # all but 2 % of the tokens a second
    assert replace(COST, batches=(1, 8, 64), seconds=(0.1, 0.1, 0.8)).best_batch(64) == 8
    assert replace(COST, batches=(1, 8, 64), seconds=(0.1, 0.8, 6.4)).best_batch(64) == 1
    # with 0.1 s of reading for each token that is written, 2 % of all is much of the writing:
    assert COST.best_batch(64, prompt=10.0) == 29


def test_the_batch_becomes_smaller_where_prompts_take_most_of_the_time() -> None:
    machine = Machine(make(slots=64, rows=64, blocks=4096, chunk=64))
    assert machine.scheduler.batch == 62
    for number in range(64):
        machine.scheduler.add(job(number, prompt=100, most=2))
    machine.run()
    assert machine.scheduler.batch == COST.best_batch(64, prompt=50.0) < 20
    assert machine.scheduler.outlook.batch == machine.scheduler.batch
