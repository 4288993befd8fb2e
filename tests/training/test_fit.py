"""How much of a step fits a memory that is made up, and that nothing has changed after it was found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import Averager, Shuffled, make

from fastserve import device
from fastserve.errors import TrainingError
from fastserve.training.activations import watching
from fastserve.training.events import Stepped
from fastserve.training.fit import PASSING, USED, made_later, micro_batch
from fastserve.training.loop import TrainingRun
from fastserve.types import LongArray


def proposed(run: TrainingRun) -> int:
    return micro_batch(run.computing, run.optimizers, run.train, run.plan)


def needed(run: TrainingRun) -> tuple[int, float]:
    """Bytes that are made later, and that a row keeps."""
    inputs, targets = run.computing.to_device(run.train.batch(np.arange(8)))
    with watching() as kept:
        run.objective(inputs, targets, 8)
    return made_later(run.computing, run.optimizers), kept.bytes / 8


def test_what_fits_is_not_cut(tmp_path: Path) -> None:
    assert proposed(make(tmp_path)) == 0


def test_as_many_rows_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    later, row = needed(run)
    monkeypatch.setattr(device, "free_memory", lambda place: int((later + PASSING * row * 3.5) / USED))
    assert 1 <= proposed(run) < 8


def test_one_row_that_does_not_fit_is_refused_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_memory", lambda place: 1_000)
    with pytest.raises(TrainingError, match=r"train\.checkpoint_activations=true, or distributed\.strategy=fsdp"):
        list(make(tmp_path).events())


def test_a_run_takes_what_is_proposed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make(tmp_path / "whole")
    later, row = needed(whole)
    expected = [event.loss for event in whole.events() if isinstance(event, Stepped)]
    run = make(tmp_path / "cut")
    monkeypatch.setattr(device, "free_memory", lambda place: int((later + PASSING * row * 3.5) / USED))
    with caplog.at_level("INFO", logger="fastserve"):
        events = run.events()
        first = next(events)
    assert isinstance(first, Stepped)
    assert 1 <= run.progress.micro_batch < 8
    assert first.rows == 8
    assert first.loss == pytest.approx(expected[0], rel=0.5)  # other words are dropped


def test_nothing_has_changed_afterwards(tmp_path: Path) -> None:
    run = make(tmp_path)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    random = torch.get_rng_state()
    proposed(run)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())
    assert all(parameter.grad is None for parameter in run.network.parameters())


class Long(Shuffled):
    def largest(self) -> LongArray:
        return np.arange(3)


def test_a_plan_may_say_which_step_is_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    run.plan = Long()
    seen: list[int] = []
    monkeypatch.setattr(Averager, "forward", _recording(Averager.forward, seen))
    proposed(run)
    assert seen == [1], "of three rows one is computed"


def _recording(forward: object, seen: list[int]) -> object:
    def record(network: Averager, inputs: dict[str, object]) -> object:
        seen.append(len(inputs["tokens"]))  # type: ignore[arg-type]
        return forward(network, inputs)  # type: ignore[operator]

    return record


def test_the_processor_has_memory_left() -> None:
    assert (device.free_memory(torch.device("cpu")) or 0) > 10 << 20
