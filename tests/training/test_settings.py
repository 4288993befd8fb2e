"""What `auto` comes to mean, schedules, and combinations that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from fastserve.config import TrainConfig
from fastserve.errors import ConfigError
from fastserve.tasks.classification import Classification
from fastserve.training.settings import SHORT_RUN, Settings, settle
from fastserve.types import Recipe

RECIPE = Recipe(epochs=4, batch=10, learning_rate=0.1, warmup=0.1, spike=3.0)
TASK = Classification(["a", "b"])


def settled(rows: int = 1_000, **said: Any) -> Settings:
    return settle(TrainConfig(**said), RECIPE, TASK, rows=rows)


def test_wsd_warms_up_is_stable_and_decays() -> None:
    found = settled(schedule="wsd", decay=0.25)
    rates = [found.rate_at(step) for step in range(found.total_steps)]
    assert found.total_steps == 400
    assert rates[:40] == sorted(rates[:40])
    assert rates[40:300] == [1.0] * 260
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert rates[-1] < 0.01
    assert rates[350] == pytest.approx(1 - 0.5**0.5)


def test_the_most_steps_end_the_run_and_the_schedule() -> None:
    assert settled(max_steps=150).total_steps == 150
    assert settled(max_steps=150).recipe.epochs == 2, "as many epochs as they need"
    assert settled(max_steps=150, epochs=1).total_steps == 100
    found = settled(max_steps=150, schedule="linear")
    assert found.rate_at(149) < 0.01


def test_a_short_run_takes_no_loss_for_a_spike_unless_it_is_told_to() -> None:
    assert settled().recipe.spike == 0
    assert settled(rows=10 * SHORT_RUN).recipe.spike == 3
    assert settled(spike=5.0).recipe.spike == 5
    assert settled(rows=10 * SHORT_RUN, spike=0.0).recipe.spike == 0


def test_only_a_long_run_on_a_gpu_is_compiled_unasked() -> None:
    assert settled(rows=10 * SHORT_RUN).compiles("cuda")
    assert not settled(rows=10 * SHORT_RUN).compiles("cpu")
    assert not settled().compiles("cuda")
    assert settled(compile=True).compiles("cpu")
    assert not settled(rows=10 * SHORT_RUN, compile=False).compiles("cuda")


def test_steps_of_an_epoch_may_be_said() -> None:
    assert settle(TrainConfig(), RECIPE, TASK, rows=1_000, steps=7).total_steps == 28


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"matrix_rate": 0.02}, "say train.optimizer=muon"),
        ({"decay": 0.2}, "say train.schedule=wsd"),
        ({"schedule": "wsd", "decay": 0.9, "warmup": 0.2}, "more than the whole run together"),
        ({"z_loss": 1e-4}, "task classification has none"),
        ({"spike": 0.5}, "more than 1 times the usual loss"),
    ],
)
def test_what_does_not_go_together_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(**said)
