"""The simulator: its clock is right, jumps change nothing, and a trace is read or refused with its row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastserve.cli.main import run
from fastserve.errors import ConfigError, DataError
from fastserve.generation.figures import figures
from fastserve.generation.limits import Guards, Limits
from fastserve.generation.simulator import alone, at_load, capacity_seconds, simulate
from fastserve.generation.step_cost import SMALL_DECODER, StepCost
from fastserve.generation.traces import Request, heavy_tailed, read_trace, scaled
from fastserve.plugins import POLICIES

LIMITS = Limits(slots=8, rows=12, blocks=2048, chunk=128)


def test_one_request_takes_what_its_steps_take() -> None:
    cost = StepCost(
        (1, 2), (0.1, 0.2), 0.001, cached_token=0.0001, swapped_token=0.0, prompt_pair=1e-6, prompt_start=0.01
    )
    request = Request(3.0, 200, 3, 10)
    outcome = simulate([request], "fcfs", LIMITS, cost)
    first = 0.1 + 0.128 + 0.0128 + 0.1 + 0.072 + 0.02 + 1e-6 * (200 * 201 / 2) + 2 * 0.01
    assert outcome.first[0] == pytest.approx(first)
    assert outcome.completion[0] == pytest.approx(first + 0.1 + 0.0201 + 0.1 + 0.0202)
    assert alone(request, cost, LIMITS) == pytest.approx(outcome.completion[0])


@pytest.mark.parametrize("policy", sorted(POLICIES.builtin))
@pytest.mark.parametrize("load", [0.5, 1.0])
def test_leaving_out_plans_that_cannot_differ_changes_nothing(policy: str, load: float) -> None:
    requests = at_load(heavy_tailed(400, seed=3, most=512), load, LIMITS, SMALL_DECODER)
    limits = Limits(slots=8, rows=12, blocks=600, chunk=128, guards=Guards(wait=30.0))
    jumped, plain = (simulate(requests, policy, limits, SMALL_DECODER, jump=jump) for jump in (True, False))
    assert jumped.counts == plain.counts
    np.testing.assert_allclose(jumped.first, plain.first)
    np.testing.assert_allclose(jumped.completion, plain.completion)
    assert jumped.preemptions.tolist() == plain.preemptions.tolist()
    assert not np.isnan(jumped.completion).any()


def test_offered_work_is_the_load_times_the_capacity() -> None:
    requests = heavy_tailed(600, seed=1, most=512)
    seconds = capacity_seconds(requests, LIMITS, SMALL_DECODER)
    assert at_load(requests, 0.8, LIMITS, SMALL_DECODER)[-1].arrival == pytest.approx(seconds / 0.8)
    half, over = (
        simulate(at_load(requests, load, LIMITS, SMALL_DECODER), "fcfs", LIMITS, SMALL_DECODER) for load in (0.5, 2.0)
    )
    assert half.seconds == pytest.approx(seconds / 0.5, rel=0.1)  # it keeps up with what comes
    assert over.seconds == pytest.approx(seconds, rel=0.15)  # it goes at full speed, and comes to the end behind


def test_short_requests_gain_under_boost_and_the_work_is_the_same() -> None:
    requests = at_load(heavy_tailed(800, seed=2, most=1024), 1.0, LIMITS, SMALL_DECODER)
    found = {policy: figures(simulate(requests, policy, LIMITS, SMALL_DECODER)) for policy in ("fcfs", "boost")}
    first, boost = found["fcfs"], found["boost"]
    assert boost["short"]["completion"]["mean"] < first["short"]["completion"]["mean"] / 1.2
    assert boost["tokens_per_second"] > 0.97 * first["tokens_per_second"]


def test_a_bounded_queue_refuses_and_says_how_many() -> None:
    requests = scaled(heavy_tailed(300, seed=2, most=512), 1.0)
    limits = Limits(slots=8, rows=12, blocks=2048, chunk=128, max_waiting_tokens=20_000)
    found = figures(simulate(requests, "fcfs", limits, SMALL_DECODER))
    assert 0 < found["refused"] < 300
    assert found["all"]["requests"] + found["refused"] == 300


def test_a_request_that_cannot_fit_is_named() -> None:
    with pytest.raises(DataError, match="request 1 has 40,000 tokens"):
        simulate([Request(0.0, 40_000, 5, 10)], "fcfs", LIMITS, SMALL_DECODER)


def test_a_recorded_trace_is_read(shared_data: Path) -> None:
    requests = read_trace(str(shared_data / "trace_azure_llm_2023" / "conv.tsv.gz"))
    assert len(requests) == 19_366
    assert (requests[0].arrival, requests[0].prompt, requests[0].output) == (0.0, 374, 44)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "arrival_s\tinput_tokens\n1\t2\n", "has no column output_tokens: expected the columns arrival_s"),
        ("a.csv", "arrival_s,input_tokens,output_tokens\n1,2,3\n1,x,3\n", "row 3, input_tokens: 'x' is not a whole"),
        ("a.csv", "arrival_s,input_tokens,output_tokens\n-1,2,3\n", "row 2, arrival_s: '-1' is not a number from 0"),
        ("a.csv", "arrival_s,input_tokens,output_tokens\nnan,2,3\n", "row 2, arrival_s"),
        ("a.csv", "arrival_s,input_tokens,output_tokens\n1,2,0\n", "row 2, output_tokens: '0' .* from 1 on"),
        ("a.csv", "arrival_s,input_tokens,output_tokens\n1,2\n", "row 2"),
        ("a.csv", "arrival_s,input_tokens,output_tokens\n", "no requests"),
        ("a.jsonl", '{"arrival_s": 1, "input_tokens": 2, "output_tokens": null}\n', "row 1, output_tokens"),
    ],
)
def test_a_faulty_trace_is_named_with_its_row(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=message):
        read_trace(str(tmp_path / name))


def test_a_trace_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"arrival_s": 5, "input_tokens": 2, "output_tokens": 3, "max_tokens": 9, "priority": -1, "key": "x"},
        {"arrival_s": 4, "input_tokens": 2, "output_tokens": 3},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert read_trace(str(path)) == [Request(0.0, 2, 3, 2048), Request(1.0, 2, 3, 9, -1, "x")]


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(SMALL_DECODER.to_json()), "utf-8")
    assert StepCost.read_file(path) == SMALL_DECODER
    path.write_text('{"batches": [1, 2]}', "utf-8")
    with pytest.raises(ConfigError, match="has no seconds, prompt_token"):
        StepCost.read_file(path)
    path.write_text(json.dumps(SMALL_DECODER.to_json() | {"seconds": [3, 2, 1, 1]}), "utf-8")
    with pytest.raises(ConfigError, match="must rise"):
        StepCost.read_file(path)


def test_the_command_compares_policies_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{place * 0.5},{20 + place * 37 % 200},{5 + place * 11 % 60}" for place in range(60)]
    trace.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]) + "\n", "utf-8")
    words = ["simulate", str(trace), "--policy", "boost", "--compare", "fcfs", "--slots", "4", "--load", "0.9"]
    assert run([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["policies"]) == {"boost", "fcfs"}
    assert result["policies"]["fcfs"]["all"]["completion"]["mean"] > 0
    page = (tmp_path / "out" / "simulation.html").read_text("utf-8")
    assert page.count("<svg") == 4
    assert json.loads((tmp_path / "out" / "simulation.json").read_text("utf-8")) == result["policies"]
    assert run([*words, "--option", "share=0.1"]) == 0
    assert "the longest tenth" in capsys.readouterr().out
    assert run([*words, "--option", "shore=0.1"]) == 2
    assert "did you mean 'share'" in capsys.readouterr().err
