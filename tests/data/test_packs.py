"""Rows of a corpus end to end as steps: every row once an epoch, as many tokens in each step, told by the seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastserve.data.packs import PackPlan, packed_batches

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=300).map(lambda found: np.array(found, np.int32))


def plan(lengths: np.ndarray, tokens: int, seed: int = 0, alike: int = 1) -> PackPlan:
    return PackPlan(lengths, tokens, seed, lengths.astype(np.float32) - 1, alike)


@given(LENGTHS, st.integers(64, 500), st.integers(0, 3), st.sampled_from([1, 3, 50]))
def test_every_row_comes_once_in_an_epoch(lengths: np.ndarray, tokens: int, epoch: int, alike: int) -> None:
    steps = plan(lengths, tokens, alike=alike).epoch(epoch)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(lengths)))
    assert len(steps) <= plan(lengths, tokens).steps


@given(LENGTHS, st.integers(64, 500), st.sampled_from([1, 3, 50]))
def test_steps_have_as_many_tokens_up_to_a_row(lengths: np.ndarray, tokens: int, alike: int) -> None:
    one = plan(lengths, tokens, alike=alike)
    mean = lengths.sum() / one.steps
    for rows in one.epoch(0):
        assert abs(int(lengths[rows].sum()) - mean) < 2 * lengths.max()
        assert lengths[rows].sum() < tokens + lengths.max()


@given(LENGTHS, st.integers(64, 500))
def test_the_longest_rows_of_a_step_come_first(lengths: np.ndarray, tokens: int) -> None:
    assert all((np.diff(lengths[rows]) <= 0).all() for rows in plan(lengths, tokens).epoch(1))


def test_epochs_and_seeds_differ_and_come_again() -> None:
    lengths = np.full(100, 10, np.int32)
    first = [rows.tolist() for rows in plan(lengths, 100).epoch(0)]
    assert first == [rows.tolist() for rows in plan(lengths, 100).epoch(0)]
    assert first != [rows.tolist() for rows in plan(lengths, 100).epoch(1)]
    assert first != [rows.tolist() for rows in plan(lengths, 100, seed=1).epoch(0)]


def test_rows_of_like_length_come_together_and_steps_at_random() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 2000)
    mixed, alike = plan(lengths, 2000).epoch(0), plan(lengths, 2000, alike=50).epoch(0)

    def padding(steps: list[np.ndarray]) -> float:
        return 1 - lengths.sum() / sum(int(lengths[rows].max()) * len(rows) for rows in steps)

    assert padding(alike) < 0.1 < 0.4 < padding(mixed)
    means = [lengths[rows].mean() for rows in alike]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.4, "short and long steps take turns"


def test_a_row_counts_by_its_tokens() -> None:
    one = plan(np.array([5, 2, 9], np.int32), 100)
    assert one.counts(np.array([2, 0])).tolist() == [8.0, 4.0]


@given(LENGTHS, st.integers(1, 300))
def test_batches_hold_every_row_once_and_no_more_tokens_than_told(lengths: np.ndarray, tokens: int) -> None:
    found = packed_batches(lengths, tokens)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    assert all(len(rows) == 1 or lengths[rows].sum() <= tokens for rows in found)
