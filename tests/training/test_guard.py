"""Who notices that a run diverges, and what it goes on with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fastserve.training.guard import FEWEST, Decisions, Guard


def fed(guard: Guard, losses: list[float]) -> Guard:
    for step, loss in enumerate(losses):
        guard.see(step, loss, 0.0)
    return guard


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_breaks_and_the_first_step_counts(loss: float) -> None:
    guard = fed(Guard(0.0), [1.0, loss, math.nan])
    assert guard.broken is not None
    assert guard.broken.step == 1
    assert str(guard.broken) == f"the loss became {loss} at step 1"
    assert not guard.calm


def test_a_gradient_that_is_no_number_breaks() -> None:
    guard = Guard(0.0)
    guard.see(3, 1.0, math.inf)
    assert str(guard.broken) == "the norm of the gradient became inf at step 3"


def test_a_spike_is_one_after_enough_losses_and_where_it_is_asked_for() -> None:
    usual = [1.0, 1.2, 0.9] * 10
    assert fed(Guard(3.0), [1.0, 3.5]).broken is None, f"fewer than {FEWEST} losses say nothing"
    assert fed(Guard(0.0), [*usual, 30.0]).broken is None
    assert fed(Guard(3.0), [*usual, 2.9]).broken is None
    assert str(fed(Guard(3.0), [*usual, 3.5]).broken) == "the loss became 3.5 at step 30, where 1 was usual"


def test_weights_are_not_good_ones_while_the_loss_rises() -> None:
    guard = fed(Guard(0.0), [1.0, 1.1, 0.9])
    assert guard.calm
    assert not fed(guard, [5.0]).calm
    assert fed(guard, [1.2]).calm


def test_going_back_forgets_what_came_after() -> None:
    guard = fed(Guard(0.0), [1.0, math.nan])
    guard.forget([2.0])
    assert guard.broken is None
    assert list(guard.losses) == [2.0]


def test_decisions_outlive_the_process(tmp_path: Path) -> None:
    decided = Decisions([4, 9], 0.25, 4)
    decided.write(tmp_path / "decisions.json")
    assert Decisions.read(tmp_path / "decisions.json") == decided
    assert Decisions.read(tmp_path / "none.json") == Decisions()
