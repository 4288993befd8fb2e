"""A step in pieces is the whole step, and all workers decide alike about what breaks a run: under every strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import run_workers
from safetensors.torch import load_file

MEMBER = str(Path(__file__).with_name("steps_member.py"))
CLOSE = {"alone": 1e-12, "ddp": 1e-12, "fsdp": 1e-5, "diloco": 1e-12}
"""fsdp computes with weights of 32 bits."""
STRATEGIES = [
    "alone",
    "ddp",
    pytest.param("fsdp", marks=pytest.mark.heavy),
    pytest.param("diloco", marks=pytest.mark.heavy),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_workers(1, [MEMBER, "alone", str(folder)])
    return folder


@pytest.fixture(scope="module", params=STRATEGIES)
def found(request: pytest.FixtureRequest, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers left."""
    if request.param == "alone":
        return alone
    folder = tmp_path_factory.mktemp(request.param)
    run_workers(2, [MEMBER, request.param, str(folder)], seconds=300)
    return folder


def apart(one: Path, other: Path) -> float:
    """The largest relative distance of two networks' weights."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - value).norm() / value.norm()) for name, value in second.items())


def strategy_of(folder: Path) -> str:
    return next(name for name in CLOSE if folder.name.startswith(name))


def said(folder: Path, name: str, rank: int = 0) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return [event for event in events if event["kind"] != "step"]


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("rows-in-pieces", "rows"),
        ("rows-one-by-one", "rows"),
        ("tokens-in-pieces", "tokens"),
        ("muon-in-pieces", "muon"),
        ("big-in-pieces", "big"),
    ],
)
def test_a_step_in_pieces_is_the_whole_step(found: Path, name: str, whole: str) -> None:
    if not (found / f"{name}.safetensors").exists():
        pytest.skip("fsdp has no row-sparse tables in this test")
    assert apart(found / f"{name}.safetensors", found / f"{whole}.safetensors") < CLOSE[strategy_of(found)]


@pytest.mark.parametrize("name", ["rows", "tokens", "muon"])
def test_two_workers_give_the_weights_of_one(alone: Path, found: Path, name: str) -> None:
    strategy = strategy_of(found)
    if strategy == "diloco":
        pytest.skip("diloco finds other weights than one worker")
    assert apart(found / f"{name}.safetensors", alone / f"{name}.safetensors") < CLOSE[strategy]


def test_rows_count_by_their_tokens(alone: Path) -> None:
    assert apart(alone / "tokens.safetensors", alone / "rows.safetensors") > 1e-2


def test_a_broken_batch_is_left_out_and_the_rest_is_trained(found: Path) -> None:
    events = said(found, "skip")
    back = [event for event in events if event["kind"] == "went_back"]
    assert [event["step"] for event in back] == [0, 0], "there was no checkpoint but the start"
    assert [event["broken"] for event in back] == [4, 9], "the batch of each epoch that has the row"
    assert all("became nan at step" in event["reason"] for event in back)
    assert [event["step"] for event in events if event["kind"] == "skipped"][-2:] == [5, 10]
    assert all(value.isfinite().all() for value in load_file(found / "skip.safetensors").values())


def test_the_newest_checkpoint_is_gone_back_to(found: Path) -> None:
    back = [event for event in said(found, "skip-often") if event["kind"] == "went_back"]
    if strategy_of(found) == "diloco":
        assert [event["broken"] for event in back] == [4, 9]
    else:
        assert [(event["step"], event["broken"]) for event in back] == [(4, 4), (9, 9)]


def test_a_run_that_is_not_to_go_on_says_what_to_do(found: Path) -> None:
    (event,) = said(found, "stop")
    assert "became nan at step 4: lower train.learning_rate" in event["message"]
    assert "skip_batch" in event["message"]


def test_a_run_that_nothing_helps_is_given_up(found: Path) -> None:
    events = said(found, "lower")
    factors = [event["factor"] for event in events if event["kind"] == "went_back"]
    assert factors == [0.5**time for time in range(1, len(factors) + 1)]
    assert "lowering the rate did not help" in events[-1]["message"]
    if strategy_of(found) != "alone":
        assert said(found, "lower", 1)[-1]["message"] == events[-1]["message"], "all workers end alike"
