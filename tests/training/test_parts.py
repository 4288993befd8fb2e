"""A step dealt out: over all workers what counts is counted once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.distributed.world import World


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 5))
def test_shares_are_of_what_counts(tokens: list[int], workers: int) -> None:
    rows, counts = np.arange(len(tokens)), np.array(tokens, np.float32)
    parts = [World(rank, workers).part(rows, counts) for rank in range(workers)]
    assert sum(part.share for part in parts) == pytest.approx(1.0 if sum(tokens) else 0.0)
    for part in parts:
        assert len(part.rows)
        if part.counted:
            assert part.share == pytest.approx(sum(counts[part.rows]) / sum(tokens))


def test_without_counts_each_row_counts_the_same() -> None:
    parts = [World(rank, 4).part(np.arange(6)) for rank in range(4)]
    assert [part.share for part in parts] == pytest.approx([2 / 6, 2 / 6, 1 / 6, 1 / 6])
    assert [World(rank, 4).part(np.arange(3)).counted for rank in range(4)] == [True, True, True, False]
