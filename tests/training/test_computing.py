"""torch.compile gives what is computed without it; where it cannot compile, the run goes on as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import ROWS, make

from fastserve.errors import ConfigError
from fastserve.training.events import Stepped
from fastserve.training.loop import TrainingRun

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler warns while it is imported


def losses(run: TrainingRun, steps: int = 4) -> list[float]:
    found: list[float] = []
    for event in run.events():
        if isinstance(event, Stepped):
            found.append(event.loss)
        if len(found) == steps:
            break
    return found


def without_dropout(run: TrainingRun) -> TrainingRun:
    run.network.dropout.p = 0.0  # type: ignore[union-attr]
    return run


def test_what_cannot_be_compiled_is_computed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = losses(make(tmp_path / "plain"))
    run = make(tmp_path / "compiled", compile=True)

    def fail(*_: object, **__: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler here"), None)

    monkeypatch.setattr(run.objective, "compile", lambda **_: setattr(run.objective, "_compiled_call_impl", fail))
    assert losses(run) == expected
    assert "torch.compile cannot compile this network" in caplog.text
    assert not run.computing.compiled


def test_an_error_of_the_network_is_not_taken_for_one_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, compile=True)

    def fail(*_: object, **__: object) -> None:
        raise ValueError("of the network")

    monkeypatch.setattr(run.objective, "compile", lambda **_: setattr(run.objective, "_compiled_call_impl", fail))
    with pytest.raises(ValueError, match="of the network"):
        losses(run)


@pytest.mark.heavy
def test_compiled_steps_are_the_plain_ones(tmp_path: Path) -> None:
    expected = losses(without_dropout(make(tmp_path / "plain")))
    run = without_dropout(make(tmp_path / "compiled", compile=True))
    assert losses(run) == pytest.approx(expected, rel=1e-4)
    assert run.computing.compiled, "the compiler worked"


def test_a_network_without_blocks_cannot_compute_them_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Averager has no blocks that can be computed again"):
        make(tmp_path, checkpoint_activations=True)


def test_what_is_reported_is_computed_as_the_model_is_loaded(tmp_path: Path) -> None:
    """In float32, whatever the run is computed in; and afterwards the run goes on as before."""
    run = make(tmp_path)
    every = [np.arange(ROWS)]
    exact, _ = run.scores(run.train, every)
    run.computing.precision = torch.bfloat16
    rough, _ = run.scores(run.train, every)
    final, _ = run.scores(run.train, every, exact=True)
    assert not np.array_equal(rough, exact)
    assert np.array_equal(final, exact)
    assert run.computing.precision is torch.bfloat16
