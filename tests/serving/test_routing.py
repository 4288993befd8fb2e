"""`fastserve route`: a process before several servers."""

from __future__ import annotations

import concurrent.futures
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replicas import FakeServer, fake_servers

from fastserve.errors import ConfigError
from fastserve.serving.routing.affinity import BLOCK, MARGIN, Affinity, blocks_of, prompt_of, work_of
from fastserve.serving.routing.replica import Replica

LONG = "A long beginning that many questions share. " * 40


@contextmanager
def routing(servers: Sequence[str], *words: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "fastserve", "route", *servers, "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://[\d.:]+", said)
        assert found, said
        with httpx.Client(base_url=found[0], timeout=20) as client:
            yield client, process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def routed(*names: str) -> Iterator[tuple[httpx.Client, list[FakeServer]]]:
    with fake_servers(*names) as servers, routing([server.url for server in servers]) as (client, _):
        wait_until_ready(client, len(names))
        yield client, servers


def wait_until_ready(client: httpx.Client, count: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if client.get("/metrics").text.count("} 1\n# HELP fastserve_router_open_requests") and ready(client) == count:
            return
        time.sleep(0.05)
    pytest.fail("not all servers became ready")


def ready(client: httpx.Client) -> int:
    return len(re.findall(r"^fastserve_router_ready\{.*\} 1$", client.get("/metrics").text, re.MULTILINE))


def ask(client: httpx.Client, prompt: str, **more: object) -> httpx.Response:
    return client.post("/v1/completions", json={"model": "poet", "prompt": prompt, **more})


def test_a_prompt_goes_where_its_beginning_was_read() -> None:
    with routed("one", "two", "three") as (client, _):
        first = ask(client, LONG + "who?").json()["server"]
        assert [ask(client, LONG + f"question {number}").json()["server"] for number in range(6)] == [first] * 6
        chat = [{"role": "user", "content": LONG}]
        found = {
            client.post("/v1/chat/completions", json={"messages": [*chat, {"role": "user", "content": str(n)}]}).json()[
                "server"
            ]
            for n in range(4)
        }
        assert len(found) == 1


def test_requests_at_once_are_spread() -> None:
    with routed("one", "two") as (client, servers):
        for server in servers:
            server.pause = 1.0
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda number: ask(client, f"{number}").json()["server"], range(4)))
        assert sorted(answers) == ["one", "one", "two", "two"]


def test_headers_query_and_status_are_passed_on() -> None:
    with routed("one") as (client, servers):
        answer = client.post(
            "/v1/completions?x=1", json={"prompt": "a"}, headers={"x-request-id": "mine", "authorization": "Bearer k"}
        )
        assert answer.headers["x-who"] == "one"
        assert answer.headers["x-request-id"] == "mine"
        assert servers[0].headers[0]["x-request-id"] == "mine"
        assert servers[0].headers[0]["authorization"] == "Bearer k"
        assert client.get("/v1/models?a=b").json() == {"path": "/v1/models?a=b", "server": "one"}


def test_a_stream_comes_as_it_is_written() -> None:
    with routed("one") as (client, servers):
        servers[0].pause = 0.3
        times, events = [], []
        with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line:
                    events.append(json.loads(line.removeprefix("data: "))["n"])
                    times.append(time.monotonic())
        assert events == [0, 1, 2]
        assert times[-1] - times[0] > 0.4


def test_a_client_that_leaves_ends_its_request() -> None:
    with routed("one") as (client, servers):
        servers[0].pause = 0.05
        body = {"prompt": "a", "stream": True, "max_tokens": 10_000}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        assert servers[0].left.wait(10)


def test_a_full_server_is_passed_over() -> None:
    with routed("one", "two") as (client, servers):
        servers[0].state = "full"
        assert {ask(client, f"{number}").json()["server"] for number in range(4)} == {"two"}
        servers[1].state = "full"
        answer = ask(client, "more")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


def test_a_server_that_breaks_off_is_passed_over_and_taken_back() -> None:
    with routed("one", "two") as (client, servers):
        servers[0].state = "dies"
        assert {ask(client, f"{number}").json()["server"] for number in range(4)} == {"two"}
        servers[0].state = "ready"
        wait_until_ready(client, 2)


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    with routed("one") as (client, servers):
        servers[0].state = "dies"
        with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert json.loads(lines[0].removeprefix("data: "))["n"] == 0
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"


def test_without_servers_it_says_so() -> None:
    with fake_servers("gone") as (server,):
        url = server.url
    with routing([url]) as (client, _):
        answer = ask(client, "a")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["type"] == "overloaded_error"
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200


def test_keys_are_asked_for(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-sixteen-characters\n")
    with fake_servers("one") as (server,), routing([server.url], "--api-key-file", str(keys)) as (client, _):
        assert ask(client, "a").status_code == 401
        client.headers["authorization"] = "Bearer a-key-of-sixteen-characters"
        wait_until_ready(client, 1)
        assert ask(client, "a").status_code == 200


def test_open_requests_end_before_it_does() -> None:
    with fake_servers("one") as (server,), routing([server.url]) as (client, process):
        wait_until_ready(client, 1)
        server.pause = 0.3
        with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert sum(bool(line) for line in lines) == 2
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("url", ["ftp://a:1", "http://", "http://a:b", "http://a:1/path"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        Replica(url)


class Server:
    def __init__(self, name: str, work: int) -> None:
        self.name, self.work = name, work


@given(st.lists(st.integers(0, 3 * MARGIN), min_size=1, max_size=5), st.integers(0, 4))
def test_none_is_much_busier_for_a_prompt_that_it_knows(works: list[int], known: int) -> None:
    servers = [Server(str(number), work) for number, work in enumerate(works)]
    affinity, blocks = Affinity(), blocks_of("x" * 3 * BLOCK, "m")
    affinity.note(blocks, str(known))
    chosen = affinity.choose(blocks, servers)
    assert chosen.work <= min(works) + MARGIN
    if known < len(works) and works[known] <= min(works) + MARGIN:
        assert chosen.name == str(known)


def test_what_is_read_of_a_request() -> None:
    assert prompt_of({"prompt": "a"}) == "a"
    assert prompt_of({"messages": [{"role": "user", "content": "中"}]}) == '[{"role":"user","content":"中"}]'
    assert work_of({"max_tokens": 10, "n": 2}, "abc") == 21
    assert work_of({"max_tokens": "many"}, "abc") > 1
    assert blocks_of("a" * BLOCK, "x") != blocks_of("a" * BLOCK, "y")
    assert blocks_of("a" * BLOCK + "b", "x") == blocks_of("a" * BLOCK + "c", "x")
