"""Keys, rates, overload, and what the server counts and logs."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rawhttp import ask, connect, read_reply, request

from fastserve.errors import ConfigError, ServingError
from fastserve.serving import ServeOptions
from fastserve.serving.keys import Gate, Key, read_key_file
from fastserve.serving.listener import bind
from fastserve.serving.messages import HttpError
from fastserve.serving.names import name_models
from fastserve.serving.serve import check_exposure

Serve = Callable[..., Any]
SECRET = "correct-horse-battery"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n\nalice:{SECRET}\nanother-long-secret\n")
    return path


def test_keys_protect_everything_but_health(serve: Serve, key_file: Path) -> None:
    client = serve(api_key_file=str(key_file)).client
    paths = ["/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/v2", "/v2/models/sentiment", "/nothing"]
    assert {client.get(path).status_code for path in paths} == {401}
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    refused = client.post("/v1/models/sentiment:predict", json={"instances": ["a"]})
    assert refused.status_code == 401
    assert "Basic" in refused.headers["www-authenticate"]
    assert "security" in client.get("/openapi.json", headers={"authorization": f"Bearer {SECRET}"}).json()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {SECRET}"}, 200),
        ({"authorization": f"bearer  {SECRET} "}, 200),
        ({"authorization": "Bearer another-long-secret"}, 200),
        ({"x-api-key": SECRET}, 200),
        ({"authorization": "Basic " + base64.b64encode(f"any:{SECRET}".encode()).decode()}, 200),
        ({"authorization": f"Bearer {SECRET}x"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": SECRET}, 401),
        ({"authorization": "Basic ???"}, 401),
        ({"x-api-key": "alice"}, 401),
    ],
)
def test_ways_to_give_a_key(serve: Serve, key_file: Path, headers: dict[str, str], status: int) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    port = serve(api_key_file=str(key_file)).port
    assert ask(port, f"GET /v2 HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())[0] == status


def test_no_body_is_taken_from_who_has_no_key(serve: Serve, key_file: Path) -> None:
    with connect(serve(api_key_file=str(key_file)).port) as connection:
        connection.sendall(request("a" * 10_000)[:300])
        assert read_reply(connection)[0] == 401


def test_a_key_over_its_rate(serve: Serve, key_file: Path) -> None:
    client = serve(api_key_file=str(key_file), requests_per_second=0.5, burst=3).client
    alice = {"authorization": f"Bearer {SECRET}"}
    replies = [client.get("/v2", headers=alice) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 2
    assert client.get("/v2", headers={"x-api-key": "another-long-secret"}).status_code == 200


def test_the_rate_over_time() -> None:
    now = 0
    gate = Gate([Key("a", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb")], rate=10, burst=2,
                clock=lambda: now)  # fmt: skip
    allowed = 0
    for step in range(1000):
        now = step * 10_000_000  # 10 ms
        try:
            gate.check({b"x-api-key": b"a"})
            allowed += 1
        except HttpError as error:
            assert error.status == 429  # noqa: PT017
    assert allowed in (100, 101, 102), "10 a second for 10 seconds, and a burst of 2"


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "holds no key"), ("# nothing\n", "holds no key"), ("bob:short\n", "line 1: a key must have at least 16"),
     ("a" * 20 + "\nbob:has a space in it\n", "line 2")],
)  # fmt: skip
def test_faulty_key_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_key_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key_file(tmp_path / "absent")


def test_a_public_address_needs_keys(key_file: Path) -> None:
    with pytest.raises(ConfigError, match="--api-key-file"):
        check_exposure(ServeOptions(host="0.0.0.0"))
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        check_exposure(ServeOptions(host="127.example.org"))
    for options in (
        {"insecure": True},
        {"api_key_file": str(key_file)},
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "localhost"},
    ):
        check_exposure(ServeOptions(**{"host": "0.0.0.0", **options}))


def test_a_port_in_use() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} on 127.0.0.1 is in use .* --port"):
            bind("127.0.0.1", port)
    with pytest.raises(ServingError, match="expected an address of this machine"):
        bind("203.0.113.7", 0)


def test_names(tmp_path: Path) -> None:
    (tmp_path / "spam").mkdir()
    words = ["sentiment@production", "topics=sentiment@2", str(tmp_path / "spam")]
    assert [model.name for model in name_models(words)] == ["sentiment", "topics", "spam"]
    with pytest.raises(ConfigError, match="two models would be served as 'a'"):
        name_models(["a@1", "a@2"])
    with pytest.raises(ConfigError, match="give one: NAME="):
        name_models(["b d"])
    with pytest.raises(ConfigError, match="no model is named"):
        name_models([])


def test_overload_is_refused_at_once_and_the_rest_is_answered(serve: Serve) -> None:
    server = serve(settings={"seconds": 0.05}, max_queue_requests=8)  # slow, so that a busy machine asks in time
    outcomes: list[tuple[int, float, str | None]] = []

    def one() -> None:
        start = time.monotonic()
        reply = httpx.post(f"{server.url}/v1/models/sentiment:predict", json={"instances": ["x"] * 5}, timeout=20)
        outcomes.append((reply.status_code, time.monotonic() - start, reply.headers.get("retry-after")))

    threads = [threading.Thread(target=one) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [status for status, _, _ in outcomes]
    assert set(statuses) == {200, 503}
    assert 8 <= statuses.count(200) <= 20
    assert all(int(after or 0) >= 1 for status, _, after in outcomes if status == 503)
    counts = server.node.slots["sentiment"].current.runner.batcher.counts
    assert counts.refused == statuses.count(503)


def test_health_answers_while_the_model_computes(serve: Serve) -> None:
    server = serve(settings={"seconds": 0.15})
    with connect(server.port) as busy:
        busy.sendall(request("slow"))
        start = time.monotonic()
        assert server.client.get("/v2/health/ready").status_code == 200
        assert time.monotonic() - start < 0.14
        assert read_reply(busy)[0] == 200


def test_a_server_without_progress_is_not_ready(serve: Serve) -> None:
    server = serve(settings={"seconds": 0.4}, hang_seconds=0.15)
    with connect(server.port) as busy:
        busy.sendall(request("slow"))
        time.sleep(0.25)
        assert server.client.get("/v2/health/ready").json() == {"ready": False}
        assert server.client.get("/v2/models/sentiment/ready").status_code == 503
        assert server.client.get("/v2/health/live").status_code == 200
        read_reply(busy)
    assert server.client.get("/v2/health/ready").json() == {"ready": True}


def test_metrics_are_what_prometheus_reads(serve: Serve) -> None:
    server = serve()
    server.predict("a", "b")
    server.predict("c")
    server.client.get("/nothing")
    server.client.post("/v1/models/sentiment:predict", content=b"{")
    reply = server.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    model = ("model", "sentiment")
    assert samples["fastserve_requests_total", model, ("status", "200")] == 2
    assert samples["fastserve_requests_total", model, ("status", "400")] == 1
    assert samples["fastserve_requests_total", ("model", ""), ("status", "404")] == 1
    assert samples["fastserve_texts_total", model] == 3
    assert samples["fastserve_request_seconds_count", model] == 3
    assert samples["fastserve_request_seconds_bucket", ("le", "+Inf"), model] == 3
    assert samples["fastserve_ready_workers", model] == 1


def test_the_log_never_holds_a_text(make_model: Callable[..., Path], serve: Serve) -> None:
    server = serve(access_log=True)
    stream = io.StringIO()
    server.node.events.stream, server.node.events.level = stream, 0
    server.predict("very private words", "fail!")
    server.client.post("/v1/models/sentiment:predict", content=b'{"instances": "very private words"}')
    end = time.monotonic() + 5
    while stream.getvalue().count('"request"') < 2 and time.monotonic() < end:
        time.sleep(0.01)  # a request is logged after its answer was given away
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["status"] for line in lines if line["event"] == "request"] == [500, 400]
    assert [line["kind"] for line in lines if line["event"] == "model failed"] == ["ValueError"]
    assert "private" not in stream.getvalue()
