"""The engine as a process: killed and hanging under load, drained, swapped, overloaded. Real processes and signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rawhttp import connect
from servers import Server, children
from streaming import chunks, completion, events, figure, is_empty, read_head, until

from fastserve.generation.orders import EngineStats
from fastserve.serving.events import Events
from fastserve.serving.generation.client import EngineClient
from fastserve.serving.generation.wire import EngineOrder

Write = Callable[..., Any]


def engines(of: int) -> list[int]:
    """Process ids of the engines whose parent is `of`."""
    return children(of, b"serving.generation.process")


class Askers:
    """Clients that ask one completion after another, streamed or not. outcomes: how each ended."""

    def __init__(self, url: str, clients: int, **ask: Any) -> None:
        self.url, self.ask = url, {"model": "poet", "prompt": "a", "max_tokens": 20, **ask}
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.retry_after: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        streams = number % 2 == 1
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while not self._stop.is_set():
                start = time.monotonic()
                try:
                    reply = client.post("/v1/completions", json={**self.ask, "stream": streams})
                except httpx.HTTPError as error:
                    self.outcomes[type(error).__name__] += 1
                    continue
                self.outcomes[self._outcome(reply, streams)] += 1
                if reply.status_code == 200:
                    self.seconds.append(time.monotonic() - start)
                elif "retry-after" in reply.headers:
                    self.retry_after.add(reply.headers["retry-after"])
                    time.sleep(0.02)

    @staticmethod
    def _outcome(reply: httpx.Response, streams: bool) -> str:
        if reply.status_code != 200 or not streams:
            return str(reply.status_code)
        told = events(reply.content)
        assert told[-1] == "[DONE]", "a stream always ends"
        return "error event" if "error" in told[-2] else "200"


def test_an_engine_that_is_killed_under_load_answers_everyone_and_comes_back(write: Write) -> None:
    server = write({"seconds": 0.01, "slots": 4})
    with Askers(server.url, 8) as askers:
        for times in (1, 2):
            until(lambda: figure(server.url, "vllm:num_requests_running") == 4)
            os.kill(engines(os.getpid())[0], signal.SIGKILL)
            until(lambda: figure(server.url, "fastserve_engine_restarts_total") == times)  # noqa: B023
            assert server.client.get("/v2/health/ready").status_code == 503
            assert server.client.get("/v2/health/live").status_code == 200
            until(lambda: server.client.get("/v2/health/ready").status_code == 200)
        done = askers.outcomes["200"]
        until(lambda: askers.outcomes["200"] > done + 8)
    assert set(askers.outcomes) == {"200", "500", "503", "error event"}, askers.outcomes
    assert askers.retry_after == {"2"}
    until(lambda: is_empty(server.url))
    assert len(engines(os.getpid())) == 1


def test_an_engine_that_hangs_is_replaced(write: Write) -> None:
    server = write(hang_seconds=1.0)
    reply = server.client.post("/v1/completions", json={"prompt": "hang!"}, timeout=20)
    assert reply.status_code == 500
    assert "the engine ended while it wrote this" in reply.json()["error"]["message"]
    until(lambda: server.client.get("/v2/health/ready").status_code == 200)
    assert server.client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_stream_that_breaks_says_so_and_ends(write: Write) -> None:
    server = write({"seconds": 0.05})
    with connect(server.port) as connection:
        connection.sendall(completion(stream=True, max_tokens=1000))
        _, _, rest = read_head(connection)
        os.kill(engines(os.getpid())[0], signal.SIGKILL)
        told = events(b"".join(chunks(connection, rest)))
    assert told[-1] == "[DONE]"
    assert told[-2]["error"]["type"] == "server_error"


def test_a_model_that_cannot_be_loaded_says_why(write: Write) -> None:
    from fastserve.errors import ServingError

    with pytest.raises(ServingError, match="the weights are damaged"):
        write({"load_error": "the weights are damaged"})
    assert engines(os.getpid()) == []


def test_an_engine_that_writes_something_else_than_the_plain_loop_does_not_serve(write: Write) -> None:
    from fastserve.errors import ServingError

    with pytest.raises(ServingError, match="not those of the plain loop"):
        write({"shift": 1})
    assert engines(os.getpid()) == []


def test_versions_swap_with_no_failed_request(write: Write, make_writer: Any) -> None:
    server = write({"seconds": 0.005, "says": "one"}, watch_seconds=0.1)
    with Askers(server.url, 4, max_tokens=30) as askers:
        until(lambda: askers.outcomes["200"] > 5)
        make_writer("poet", 2, seconds=0.005, says="two")
        until(lambda: figure(server.url, "fastserve_version_swaps_total") == 1)
        make_writer("poet", 3, shift=1)
        until(lambda: figure(server.url, "fastserve_version_refusals_total") == 1)
    assert set(askers.outcomes) == {"200"}
    assert server.client.post("/v1/completions", json={"prompt": "a"}).json()["choices"][0]["text"] == "two"
    until(lambda: len(engines(os.getpid())) == 1)


def test_a_server_in_processes_drains_its_streams(make_writer: Any, launch: Callable[..., Server]) -> None:
    make_writer("poet", seconds=0.03)
    server = launch("poet").ready()
    worker = server.workers()[0]
    assert len(engines(worker)) == 1
    assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text()
    with connect(server.port) as connection:
        connection.sendall(completion(stream=True, max_tokens=40))
        _, _, rest = read_head(connection)
        server.process.send_signal(signal.SIGTERM)
        told = events(b"".join(chunks(connection, rest)))
    assert told[-1] == "[DONE]"
    assert told[-2]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(10) == 0
    assert engines(worker) == []


def test_an_engine_ends_with_its_worker(make_writer: Any, launch: Callable[..., Server]) -> None:
    make_writer("poet", load_seconds=1.5)
    server = launch("poet").ready()
    worker = server.workers()[0]
    (engine,) = engines(worker)
    os.kill(worker, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{engine}").exists())
    server.wait_for("worker ended")
    refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "overloaded_error"
    server.until(lambda: httpx.get(f"{server.url}/v2/health/ready").status_code == 200, seconds=30)
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200


def overload(write: Write, seconds: float) -> None:
    """Three times as many as are taken: those that are taken keep their time, the rest are told to come again."""
    server = write({"seconds": 0.005, "slots": 4}, writing={"max_waiting_tokens": 100})
    with Askers(server.url, 4) as alone:
        time.sleep(2)
    with Askers(server.url, 24) as askers:
        until(lambda: askers.outcomes["503"] > 0)
        memory, end = resident(engines(os.getpid())[0]), time.monotonic() + seconds
        while time.monotonic() < end:
            assert figure(server.url, "fastserve_waiting_tokens") <= 100
            time.sleep(0.1)
        assert resident(engines(os.getpid())[0]) < memory + (20 << 20)
    assert set(askers.outcomes) == {"200", "503"}, askers.outcomes
    assert askers.retry_after <= {str(number) for number in range(1, 61)}
    usual, crowded = (sorted(found)[len(found) // 2] for found in (alone.seconds, askers.seconds))
    assert crowded < 6 * usual, "at most slots + queue stand before whoever is taken"
    until(lambda: is_empty(server.url))
    with Askers(server.url, 4) as after:
        time.sleep(1)
    assert set(after.outcomes) == {"200"}


def resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_overload(write: Write) -> None:
    overload(write, 3)


@pytest.mark.heavy
def test_overload_for_longer(write: Write) -> None:
    overload(write, 120)


def test_orders_go_over_the_wire_and_come_back() -> None:
    from fastserve.generation.orders import Grammar, Order, Output
    from fastserve.generation.sampling import Sampling
    from fastserve.serving.generation.wire import read_order, read_output, write_order, write_output

    sampling = Sampling(temperature=0.5, stop=("a", "床"), logit_bias={7: -1.0}, seed=3, n=2)
    grammar = Grammar("choice", '["a"]')
    order = Order("7", [1, 2], sampling, priority=-1, key="ann", adapter="x", top_logprobs=2, grammar=grammar)
    assert read_order(json.loads(json.dumps(write_order(order)))) == order
    assert read_order(json.loads(json.dumps(write_order(Order("1", [1]))))) == Order("1", [1])
    output = Output("7", 1, 5, "床", -0.5, ((5, -0.5), (6, -1.0)), "stop", None, 16)
    assert read_output(json.loads(json.dumps(write_output(output)))) == output


def test_a_process_that_cannot_be_started_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("fastserve.serving.generation.client.subprocess.Popen", fail)

    async def start() -> None:
        order = EngineOrder.model_construct(threads=1)
        client = EngineClient(order, Events(level="error"), Unheard(), hang_seconds=10, start_seconds=60)
        await asyncio.wait_for(client.start(), 10)

    with pytest.raises(OSError, match="no more processes"):
        asyncio.run(start())


class Unheard:
    """Nobody is told anything."""

    def began(self) -> None: ...

    def told(self, stats: EngineStats) -> None: ...

    def restarted(self) -> None: ...
