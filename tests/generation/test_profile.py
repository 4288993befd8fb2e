"""The step-time curve that is measured at start."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from engines import engine_of, network_of
from pretended import Pretended
from torch import Tensor
from writers import small_decoder

from fastserve.generation.profile import SHORTEST, profile
from fastserve.generation.runner import Part, Runner
from fastserve.generation.step_cost import StepCost, pairs


@pytest.mark.parametrize(("slots", "seconds"), [(1, 2.0), (3, 2.0), (8, 2.0), (64, 0.0)])
def test_a_curve_is_measured_within_its_time(slots: int, seconds: float) -> None:
    begun = time.monotonic()
    cost = profile(Runner(network_of("decoder"), slots), slots, seconds=seconds)  # type: ignore[arg-type]
    assert time.monotonic() - begun < 20
    assert len(cost.batches) >= 2
    assert list(cost.seconds) == sorted(cost.seconds)
    assert cost.prompt_token > 0
    assert cost.swapped_token > 0
    assert 1 <= cost.best_batch(slots) <= slots


@pytest.mark.parametrize("context", [1, SHORTEST - 1, SHORTEST, SHORTEST + 3, 64])
def test_texts_that_are_measured_fit_into_a_short_context(context: int) -> None:
    network = small_decoder(context=context)
    cost = profile(Runner(network, 16), 16, seconds=0.4)
    assert (cost.origin == "measured at start") == (context >= SHORTEST)


def test_an_engine_measures_unless_it_is_told_not_to() -> None:
    assert engine_of(profile_seconds=0.2).scheduler.outlook.cost.origin == "measured at start"
    assert engine_of().scheduler.outlook.cost.origin != "measured at start"


COST = StepCost(
    (1, 2, 4, 8, 16), (0.004, 0.005, 0.006, 0.008, 0.011), 1e-4, 2e-6, 3e-7, prompt_pair=1e-7, prompt_start=0.002
)


def measured(machine: Pretended, monkeypatch: pytest.MonkeyPatch, seconds: float = 2.0) -> StepCost:
    monkeypatch.setattr("fastserve.generation.profile.time", SimpleNamespace(perf_counter=machine.clock))
    return profile(machine, 16, seconds=seconds)


@pytest.mark.parametrize("slower", [1.0, 10.0])
@pytest.mark.parametrize("longest", [96, 2048])
def test_what_steps_take_is_found(slower: float, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = StepCost(
        COST.batches,
        tuple(slower * one for one in COST.seconds),
        1e-4,
        2e-6,
        3e-7,
        prompt_pair=1e-7,
        prompt_start=0.002,
    )
    machine = Pretended(cost, longest=longest)
    found = measured(machine, monkeypatch)
    assert machine.now < 3
    assert found.batches == cost.batches
    assert found.seconds == pytest.approx(cost.seconds, rel=0.01)
    for name in ("prompt_token", "cached_token", "swapped_token", "prompt_pair", "prompt_start"):
        assert getattr(found, name) == pytest.approx(getattr(cost, name), rel=0.01), name


class Stuttering(Pretended):
    """One in seven steps takes four times as long."""

    draws = random.Random(0)

    def read(self, parts: Sequence[Part]) -> Tensor:
        begun = self.now
        found = super().read(parts)
        self.now += 3 * (self.now - begun) * (self.draws.random() < 1 / 7)
        return found


def test_a_step_takes_the_mean_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(Stuttering(COST), monkeypatch, seconds=60.0)
    assert found.decode(8) / COST.decode(8) == pytest.approx(1 + 3 / 7, abs=0.1)
    assert found.read(64) / COST.read(64) == pytest.approx(1 + 3 / 7, abs=0.1)


def test_a_prompt_takes_as_long_in_parts_as_whole() -> None:
    assert pairs(4) == 1 + 2 + 3 + 4
    assert COST.read(100) + 2 * 0.002 == pytest.approx(COST.read(60) + COST.read(30, 60) + COST.read(10, 90))
    assert StepCost.from_json(COST.to_json()) == COST
    older = {name: value for name, value in COST.to_json().items() if name not in ("prompt_pair", "prompt_start")}
    assert StepCost.from_json(older) == replace(COST, prompt_pair=0.0, prompt_start=0.0)
