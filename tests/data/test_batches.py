"""Batches: every row once, the same from (seed, epoch) alone, little padding, budgets kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.data import batches as batches_module
from fastserve.data.batches import WINDOW, BatchPlan, evaluation_batches
from fastserve.distributed.world import World

lengths_of = st.lists(st.integers(0, 60), max_size=300).map(lambda values: np.array(values, np.int64))


@given(lengths_of, st.integers(1, 40), st.integers(0, 5), st.integers(0, 3), st.integers(1, 4))
def test_every_row_exactly_once_an_epoch_over_all_workers(
    lengths: np.ndarray, batch: int, seed: int, epoch: int, workers: int
) -> None:
    plan = BatchPlan(lengths, batch, seed)
    steps = plan.epoch(epoch)
    assert len(steps) == plan.steps
    parts = [[World(rank, workers).part(rows) for rows in steps] for rank in range(workers)]
    counted = [part.rows for mine in parts for part in mine if part.counted]
    rows = np.concatenate(counted or [np.zeros(0, np.int64)])
    assert np.array_equal(np.sort(rows), np.arange(len(lengths)))
    for together in zip(*parts, strict=True):
        sizes = [len(part.rows) if part.counted else 0 for part in together]
        assert sum(sizes) == together[0].whole <= batch
        assert max(sizes) - min(sizes) <= 1
        assert sum(part.share for part in together) == pytest.approx(1)
        assert all(len(part.rows) for part in together)


@given(lengths_of, st.integers(1, 40))
def test_an_epoch_is_a_function_of_seed_and_number(lengths: np.ndarray, batch: int) -> None:
    first = BatchPlan(lengths, batch, 3).epoch(7)
    again = BatchPlan(lengths, batch, 3).epoch(7)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def shuffled_at_once(plan: BatchPlan, number: int) -> list[np.ndarray]:
    """The plain form of an epoch of rows that are all shuffled together."""
    generator = np.random.default_rng([plan.seed, number])
    order = generator.permutation(len(plan.lengths))
    window = np.arange(len(order)) // (WINDOW * plan.batch)
    order = order[np.lexsort((plan.lengths[order], window))]
    return [order[start : start + plan.batch] for start in (generator.permutation(plan.steps) * plan.batch).tolist()]


@given(lengths_of, st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_is_that_of_the_plain_form(lengths: np.ndarray, batch: int, seed: int) -> None:
    plan = BatchPlan(lengths, batch, seed)
    for found, expected in zip(plan.epoch(2), shuffled_at_once(plan, 2), strict=True):
        assert np.array_equal(found, expected)


def test_a_large_epoch_is_every_row_once_in_runs_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "SHUFFLED", 40_000)
    monkeypatch.setattr(batches_module, "RUN", 256)
    rows, batch = 100_000 + 77, 32
    lengths = np.random.default_rng(0).integers(1, 100, rows).astype(np.int32)
    plan = BatchPlan(lengths, batch, 0)
    batches = plan.epoch(0)
    assert len(batches) == plan.steps
    assert sorted(map(len, batches))[:2] == [rows % batch, batch]
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(rows))
    first = np.concatenate(batches[: 40_000 // (WINDOW * batch) * WINDOW])
    runs, sizes = np.unique(first // 256, return_counts=True)
    assert sizes[1:-1].mean() > 0.98 * 256  # whole runs, so that a disk reads them in one go
    assert np.diff(runs).max() > 5  # from all over the data
    assert abs(first.mean() / rows - 0.5) < 0.1
    assert not all(np.array_equal(a, b) for a, b in zip(batches, plan.epoch(1), strict=True))


def test_epochs_and_seeds_differ() -> None:
    lengths = np.arange(1000)
    orders = {tuple(np.concatenate(BatchPlan(lengths, 32, s).epoch(e)).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_buckets_save_most_of_the_padding_and_batches_come_in_random_order() -> None:
    lengths = np.random.default_rng(0).lognormal(3.5, 1, 20_000).astype(np.int64) + 1
    batches = BatchPlan(lengths, 64, 0).epoch(0)
    bucketed = sum(int(lengths[rows].max()) * len(rows) for rows in batches) / lengths.sum()
    shuffled = np.random.default_rng(1).permutation(lengths)[:19_968].reshape(-1, 64)
    assert bucketed < 1.4 < 3 < shuffled.max(1).sum() * 64 / shuffled.sum()
    means = np.array([lengths[rows].mean() for rows in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


@given(lengths_of, st.integers(1, 500), st.integers(1, 50))
def test_evaluation_keeps_the_budget_and_every_row(lengths: np.ndarray, tokens: int, most: int) -> None:
    batches = list(evaluation_batches(lengths, tokens, most))
    rows = np.concatenate(batches or [np.zeros(0, np.int64)])
    assert np.array_equal(rows, np.argsort(lengths, kind="stable"))
    for index, batch in enumerate(batches):
        cost = max(int(lengths[batch].max()), 1) * len(batch)
        assert len(batch) == 1 or cost <= tokens
        assert len(batch) <= most
        if index + 1 < len(batches) and len(batch) < most:  # greedy: one row more would be over the budget
            assert max(int(lengths[batches[index + 1][0]]), 1) * (len(batch) + 1) > tokens
