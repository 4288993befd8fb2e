"""The step-time curve that is measured at start."""

from __future__ import annotations

import time

import pytest
from engines import engine_of, network_of

from fastserve.generation.profile import profile


@pytest.mark.parametrize(("slots", "seconds"), [(1, 2.0), (3, 2.0), (8, 2.0), (64, 0.0)])
def test_a_curve_is_measured_within_its_time(slots: int, seconds: float) -> None:
    begun = time.monotonic()
    cost = profile(network_of("decoder"), slots, seconds=seconds)
    assert time.monotonic() - begun < 20
    assert len(cost.batches) >= 2
    assert list(cost.seconds) == sorted(cost.seconds)
    assert cost.prompt_token > 0
    assert cost.swapped_token > 0
    assert 1 <= cost.best_batch(slots) <= slots


def test_an_engine_measures_unless_it_is_told_not_to() -> None:
    assert engine_of(profile_seconds=0.2).scheduler.outlook.cost.origin == "measured at start"
    assert engine_of().scheduler.outlook.cost.origin != "measured at start"
