"""The whole server as processes: start, crash, hang, drain, swap. Real sockets, real signals."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from rawhttp import Load, connect, read_reply, request
from servers import Server

from conftest import move_alias


def test_starts_fast_answers_and_ends_with_zero(launch: Callable[..., Server]) -> None:
    server = launch().ready()
    assert server.predict("很好").status_code == 200
    assert time.monotonic() - server.started < 3 * 4, "3 s is the aim; this machine may be busy with other tests"
    assert server.stop() == 0
    assert server.workers() == []


def test_after_the_first_answer_nobody_is_told_that_the_server_starts(launch: Callable[..., Server]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = launch(port=port)
    server.url = f"http://127.0.0.1:{port}"
    server.until(server.answers, seconds=60)
    assert all(server.answers() for _ in range(40))


def test_a_worker_needs_no_torch(launch: Callable[..., Server]) -> None:
    server = launch().ready()
    maps = Path(f"/proc/{server.workers()[0]}/maps").read_text()
    assert "numpy" in maps
    assert "libtorch" not in maps
    assert "sklearn" not in maps


def test_ctrl_c_reaches_the_group_and_ends_it_in_order(launch: Callable[..., Server]) -> None:
    server = launch().ready()
    for worker in server.workers():
        os.kill(worker, signal.SIGINT)
    time.sleep(0.1)
    assert server.answers(), "workers leave SIGINT to the supervisor"
    assert server.stop(signal.SIGINT) == 0


def test_a_killed_worker_is_replaced_and_nobody_hangs(launch: Callable[..., Server]) -> None:
    server = launch().ready()
    with Load(server.port, clients=4, timeout=5) as load:
        for _ in range(2):
            server.until(server.answers)
            time.sleep(0.2)
            os.kill(server.workers()[0], signal.SIGKILL)
            assert server.wait_for("worker ended")["reason"] == "the worker was ended by SIGKILL"
        server.until(server.answers)
    assert load.slowest < 5, load
    kinds = {name.partition(" after")[0] for name in load.outcomes}
    assert kinds <= {"200", "503", "ConnectionResetError", "BrokenPipeError"}, load
    assert load.outcomes["200"] > 100
    assert load.outcomes["503"] > 0
    assert "fastserve_worker_restarts_total 2" in httpx.get(f"{server.url}/metrics").text


def test_while_no_worker_lives_the_supervisor_answers(launch: Callable[..., Server]) -> None:
    server = launch(settings={"load_seconds": 1.0}).ready()
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for("worker ended")
    refused = server.predict("x")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
    ready = httpx.get(f"{server.url}/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    server.until(server.answers)


def test_a_request_that_crashes_the_worker_does_not_end_the_server(launch: Callable[..., Server]) -> None:
    server = launch().ready()
    with pytest.raises(httpx.HTTPError):
        server.predict("crash!")
    assert "exit code 70" in server.wait_for("worker ended")["reason"]
    server.until(server.answers)


def test_a_hanging_model_is_noticed_its_stack_shown_and_replaced(launch: Callable[..., Server]) -> None:
    server = launch(settings={"seconds": 0.001}, hang_seconds=1.0).ready()
    with pytest.raises(httpx.HTTPError):
        server.predict("hang!")
    assert "hang" in server.wait_for("worker hangs")["event"]
    server.wait_for("worker ended")
    server.until(server.answers)
    assert any("in _obey" in line for line in server.lines), "the stack of the hanging thread"


def test_a_stopped_event_loop_is_noticed(launch: Callable[..., Server]) -> None:
    server = launch(hang_seconds=1.0).ready()
    os.kill(server.workers()[0], signal.SIGSTOP)
    assert "stood still" in server.wait_for("worker hangs")["reason"]
    server.wait_for("worker ended")
    server.until(server.answers)


def test_a_model_that_cannot_load_ends_the_start_with_its_reason(launch: Callable[..., Server]) -> None:
    server = launch(settings={"load_error": "weights are damaged"})
    assert server.wait_for("error")["message"] == "weights are damaged"
    assert server.process.wait(10) == 1
    missing = launch("nobody@production")
    assert "no fake model 'nobody@production'" in missing.wait_for("error")["message"]
    assert missing.process.wait(10) == 2


def test_a_worker_that_always_dies_ends_the_server_with_the_reason(launch: Callable[..., Server]) -> None:
    server = launch(settings={"load_crash": True})
    message = server.wait_for("error")["message"]
    assert "no worker became ready; 3 died in a row. The last: the worker ended with exit code 70" in message
    assert server.process.wait(10) == 1


def test_a_model_that_answers_otherwise_than_its_evaluation_is_not_served(launch: Callable[..., Server]) -> None:
    server = launch(settings={"shift": 0.01})
    message = server.wait_for("error")["message"]
    assert "does not answer as its evaluation did: parity row 1: " in message
    assert "evaluation gave" in message
    assert "很好" not in message


def test_drain_loses_no_accepted_request(launch: Callable[..., Server]) -> None:
    server = launch(settings={"seconds": 0.01}).ready()
    with Load(server.port, clients=8) as load:
        time.sleep(0.5)
        assert server.stop() == 0
    assert load.outcomes["200"] > 10
    assert load.outcomes["503"] > 0, "new requests are told to come back"
    lost = {name: count for name, count in load.outcomes.items() if "after sending" in name}
    assert not lost, load


def test_drain_finishes_long_work_and_has_a_limit(launch: Callable[..., Server]) -> None:
    server = launch(settings={"seconds": 0.1}).ready()
    with connect(server.port) as connection:
        connection.sendall(request(*"1234567890"))
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        assert read_reply(connection)[0] == 200
    assert server.process.wait(10) == 0
    stubborn = launch("sentiment", drain_seconds=0.5).ready()
    with connect(stubborn.port) as connection:
        connection.sendall(request(*["x"] * 100))
        time.sleep(0.2)
        start = time.monotonic()
        assert stubborn.stop() == 0
        assert time.monotonic() - start < 5


def test_a_second_signal_ends_at_once(launch: Callable[..., Server]) -> None:
    server = launch(settings={"seconds": 0.1}, drain_seconds=30).ready()
    with connect(server.port) as connection:
        connection.sendall(request(*["x"] * 100))
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        start = time.monotonic()
        assert server.stop() == 128 + signal.SIGTERM
        assert time.monotonic() - start < 3


def test_workers_end_when_the_supervisor_is_killed(launch: Callable[..., Server]) -> None:
    server = launch().ready()
    workers = server.workers()
    server.process.kill()
    server.process.wait(10)
    server.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def version_of(server: Server, model: str = "sentiment") -> str:
    return str(httpx.get(f"{server.url}/v2/models/{model}").json()["versions"][0])


def test_promotion_swaps_with_no_failed_request(
    launch: Callable[..., Server], make_model: Callable[..., Path], fastserve_home: Path
) -> None:
    server = launch(watch_seconds=0.1, settings={"seconds": 0.001}).ready()
    make_model(version=2, promote=False, labels=["bad", "good"], load_seconds=0.3)
    with Load(server.port, clients=4) as load:
        time.sleep(0.3)
        move_alias(fastserve_home, "sentiment", 2)
        server.wait_for("version swapped")
        time.sleep(0.3)
    assert set(load.outcomes) == {"200"}, load
    assert version_of(server) == "2"
    assert set(server.predict("x").json()["predictions"][0]["scores"]) == {"bad", "good"}
    assert 'fastserve_version_swaps_total{model="sentiment"} 1' in httpx.get(f"{server.url}/metrics").text
    move_alias(fastserve_home, "sentiment", 1)
    server.wait_for("version swapped")
    assert version_of(server) == "1"


def test_a_version_that_fails_the_gate_is_refused_and_survived(
    launch: Callable[..., Server], make_model: Callable[..., Path]
) -> None:
    server = launch(watch_seconds=0.1).ready()
    make_model(version=2, shift=0.01)
    refused = server.wait_for("version refused")
    assert "does not answer as its evaluation did" in refused["reason"]
    metadata = httpx.get(f"{server.url}/v2/models/sentiment").json()
    assert metadata["versions"] == ["1"]
    assert metadata["parameters"]["refused"]["version"] == "2"
    assert 'fastserve_version_refusals_total{model="sentiment"} 1' in httpx.get(f"{server.url}/metrics").text
    assert server.answers()
    os.kill(server.workers()[0], signal.SIGKILL)  # the successor finds only the bad version under the alias
    server.wait_for("version refused")
    server.until(server.answers)
    assert version_of(server) == "1"


def test_several_models_and_workers(launch: Callable[..., Server], make_model: Callable[..., Path]) -> None:
    make_model("sentiment")
    make_model("topics", labels=["a", "b", "c"])
    server = launch("sentiment", "topics@1", workers=2).ready()
    server.until(lambda: 'ready_workers{model="topics"} 2' in httpx.get(f"{server.url}/metrics").text)
    for _ in range(20):
        assert len(server.predict("x", model="topics").json()["predictions"][0]["scores"]) == 3
        assert server.predict("x").status_code == 200
    for _ in range(5):  # whichever worker answers, it answers for all
        text = httpx.get(f"{server.url}/metrics").text
        assert 'fastserve_requests_total{model="topics",status="200"} 20' in text
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(server.port))
        text = httpx.get(f"{server.url}/metrics").text
        counts = [int(line.split()[1]) for line in text.splitlines() if line.startswith("fastserve_connections{")]
        assert sum(counts) >= 10
        assert min(counts) >= 3, "connections are spread over the workers"
    os.kill(server.workers()[0], signal.SIGKILL)
    with Load(server.port, clients=2) as load:
        server.wait_for("worker ended")
        time.sleep(0.3)
    assert "503" not in load.outcomes, "the other worker goes on"
    assert server.stop() == 0
