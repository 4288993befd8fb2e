"""The simulator foretells the engine: on a machine whose steps take what the profile says, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import network_of
from pretended import VOCABULARY, Pretended

from fastserve.generation.limits import Guards, Limits
from fastserve.generation.orders import EngineOptions
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.simulator import Outcome, simulate
from fastserve.generation.step_cost import StepCost
from fastserve.generation.traces import Request, heavy_tailed
from fastserve.plugins import POLICIES
from schedule_engine import Drifting, Told, drive

GRAIN = 2.0**-20
"""All times are multiples of it, so that sums of them have no rounding errors, in whatever order."""
COST = StepCost(
    (1, 2, 4, 8),
    (2.0**-6, 2.0**-6 + 2.0**-10, 2.0**-5, 2.0**-4),
    prompt_token=2.0**-10,
    cached_token=2.0**-16,
    swapped_token=2.0**-13,
    prompt_pair=2.0**-18,
    prompt_start=2.0**-8,
)
GUARDS = Guards(quantum=2.0**-5, wait=2.0, fair=0.5, restore=0.5)


def served(requests: Sequence[Request], policy: str, limits: Limits, slowness: Sequence[float] = ()) -> Outcome:
    """By the engine."""
    machine = Pretended(COST, slowness=slowness)
    options = EngineOptions(precision="float32", profile_seconds=0, speculation=0, prefix_cache=False)
    engine = Told(network_of("decoder"), None, options, clock=machine.clock)
    engine.scheduler = Scheduler.create(policy, limits, COST)
    engine.runner = machine
    return drive(engine, requests, VOCABULARY, sleep=machine.sleep)


def requests_of(load: float) -> list[Request]:
    """Short ones of two keys, about as many as the machine can serve at load 1."""
    draws = np.random.default_rng(5)
    return [
        replace(
            request,
            arrival=round(request.arrival / (4.0 * load) / GRAIN) * GRAIN,
            prompt=max(request.prompt // 8, 1),
            output=min(request.output, 40),
            max_tokens=48,
            priority=int(draws.integers(-1, 2)),
            key="ab"[int(draws.integers(2))],
        )
        for request in heavy_tailed(160, seed=4, most=320)
    ]


@pytest.mark.parametrize("policy", sorted(POLICIES.builtin))
@pytest.mark.parametrize(
    ("load", "limits", "happens"),
    [
        (0.8, {}, "preemptions"),
        (1.5, {"rows": 5}, "recomputed_tokens"),
        (1.5, {"rows": 5, "host_blocks": 64}, "swapped_tokens"),
        (1.5, {"blocks": 40}, "recomputed_tokens"),
        (3.0, {"max_waiting_tokens": 400}, "refused"),
    ],
    ids=["moderate", "few rows", "swapped", "few blocks", "short queue"],
)
def test_the_engine_does_what_was_foretold(policy: str, load: float, limits: dict[str, Any], happens: str) -> None:
    few = {"slots": 4, "rows": 16, "blocks": 400, "block_size": 4, "chunk": 16}
    given = Limits(**(few | limits), guards=GUARDS)
    requests = requests_of(load)
    real = served(requests, policy, given)
    assert getattr(real.counts, happens) > 0 or policy in ("fcfs", "hrrn")
    for jump in (False, True):
        foretold = simulate(requests, policy, given, COST, jump=jump)
        np.testing.assert_array_equal(real.first, foretold.first)
        np.testing.assert_array_equal(real.completion, foretold.completion)
        assert real.counts == foretold.counts
        assert (real.seconds, real.busy) == (foretold.seconds, foretold.busy)


@pytest.mark.parametrize("policy", ["boost", "fcfs"])
def test_a_machine_that_is_slower_at_times_is_foretold_too(policy: str) -> None:
    slowness = [1.0, 2.0, 1.5, 1.0] * 20
    limits, requests = Limits(slots=4, rows=16, blocks=400, block_size=4, chunk=16, guards=GUARDS), requests_of(0.8)
    real = served(requests, policy, limits, slowness)
    assert real.seconds < len(slowness)
    simulation = Drifting(requests, Scheduler.create(policy, limits, COST), COST, slowness)
    simulation.jump = False
    np.testing.assert_array_equal(real.completion, simulation.run().completion)
    assert real.completion.mean() > 1.2 * simulate(requests, policy, limits, COST).completion.mean()
