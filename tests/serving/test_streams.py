"""Streams on the wire: how they are framed, and what becomes of clients that leave or do not read."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rawhttp import connect, read_reply
from streaming import chunks, completion, events, figure, is_empty, post, read_head, until

Write = Callable[..., Any]
SLOW = {"seconds": 0.05, "slots": 2}


def test_frames_are_whole_and_the_connection_goes_on(write: Write) -> None:
    with connect(write().port) as connection:
        for _ in range(2):
            connection.sendall(completion(stream=True, max_tokens=5))
            status, headers, rest = read_head(connection)
            assert (status, headers["transfer-encoding"]) == (200, "chunked")
            assert headers["content-type"].startswith("text/event-stream")
            frames = list(chunks(connection, rest))
            assert frames[-1] == b""
            assert all(frame.endswith(b"\n\n") for frame in frames[:-1]), "an event is never cut"
            told = events(b"".join(frames))
            assert told[-1] == "[DONE]"
            assert told[-2]["choices"][0]["finish_reason"] == "length"


def test_a_request_id_comes_back(write: Write) -> None:
    with connect(write().port) as connection:
        connection.sendall(post("/v1/completions", {"prompt": "a", "stream": True}, "x-request-id: mine-7\r\n"))
        assert read_head(connection)[1]["x-request-id"] == "mine-7"


def test_an_old_client_gets_no_chunks(write: Write) -> None:
    data = completion(stream=True, max_tokens=3).replace(b"HTTP/1.1", b"HTTP/1.0")
    with connect(write().port) as connection:
        connection.sendall(data)
        _, headers, rest = read_head(connection)
        assert "transfer-encoding" not in headers
        while part := connection.recv(65536):
            rest += part
    assert events(rest)[-1] == "[DONE]"


def test_two_requests_at_once_are_answered_one_after_the_other(write: Write) -> None:
    with connect(write().port) as connection:
        connection.sendall(completion(stream=True, max_tokens=3) + completion(max_tokens=2))
        _, _, rest = read_head(connection)
        data = rest
        while b"text_completion" not in data.partition(b"0\r\n\r\n")[2]:
            data += connection.recv(65536)
        assert b'"finish_reason":"length"' in data.partition(b"0\r\n\r\n")[2]


def test_a_refusal_is_no_stream(write: Write) -> None:
    with connect(write().port) as connection:
        connection.sendall(completion(stream=True, max_tokens=99_999))
        status, _, body = read_reply(connection)
    assert status == 400
    assert b"context_length_exceeded" in body


def test_errors_keep_the_form_of_their_path(write: Write) -> None:
    server = write(max_body_bytes=100)
    reply = server.client.post("/v1/completions", json={"prompt": "a" * 200})
    assert reply.status_code == 413
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert isinstance(server.client.post("/v2", json={}).json()["error"], str)


def vanish(connection: socket.socket) -> None:
    """Leave without a goodbye: the other side gets a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["waiting", "prefill", "decode", "body"])
def test_a_client_that_vanishes_leaves_nothing(write: Write, phase: str, stream: bool, n: int) -> None:
    server = write(SLOW)
    before = figure(server.url, "fastserve_cancelled_total")
    others = [connect(server.port) for _ in range(2 if phase == "waiting" else 0)]
    for other in others:
        other.sendall(completion("long ", max_tokens=3000))
    if others:
        until(lambda: figure(server.url, "vllm:num_requests_running") == 2)
    connection = connect(server.port)
    data = completion("some text", max_tokens=3000, n=n, stream=stream)
    connection.sendall(data[:-5] if phase == "body" else data)
    if phase == "waiting":
        until(lambda: figure(server.url, "vllm:num_requests_waiting") == n)
    elif phase == "decode":
        until(lambda: figure(server.url, "vllm:num_requests_running") == min(n, 2))
    vanish(connection)
    if others:
        until(lambda: figure(server.url, "vllm:num_requests_waiting") == 0)
        for other in others:
            vanish(other)
    until(lambda: is_empty(server.url), seconds=3)
    time.sleep(0.1)
    assert is_empty(server.url)
    if phase == "decode":
        assert figure(server.url, "fastserve_cancelled_total") == before + 1
    assert server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def test_who_leaves_while_several_prompts_are_written(write: Write) -> None:
    server = write(SLOW)
    with connect(server.port) as connection:
        connection.sendall(completion(["a", "b", "c", "d"], n=2, max_tokens=500, stream=True))  # type: ignore[arg-type]
        read_head(connection)
        until(lambda: figure(server.url, "vllm:num_requests_waiting") == 6)
    until(lambda: is_empty(server.url), seconds=3)


def test_a_reader_that_stops_is_cut_off_and_its_blocks_are_free(write: Write) -> None:
    server = write({"longest": 1 << 20}, write_seconds=0.5, header_seconds=1)
    with connect(server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(completion(stream=True, max_tokens=500_000, logprobs=20))
        read_head(connection)
        until(lambda: figure(server.url, "fastserve_cancelled_total") == 1, seconds=30)
        until(lambda: is_empty(server.url))
    assert server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def test_a_slow_reader_does_not_fill_the_memory(write: Write) -> None:
    """Long before its time is over, what waits for it is over the limit."""
    server = write({"longest": 1 << 20}, write_seconds=60, max_unread_bytes=100_000)
    with connect(server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(completion(stream=True, max_tokens=500_000, logprobs=20))
        read_head(connection)
        until(lambda: figure(server.url, "fastserve_cancelled_total") == 1, seconds=30)
        until(lambda: is_empty(server.url))


def test_a_reader_that_is_only_slow_gets_everything(write: Write) -> None:
    server = write()
    with connect(server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(completion(stream=True, max_tokens=2000))
        _, _, rest = read_head(connection)
        data = rest
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(16384)
            time.sleep(0.001)
    assert data.count(b'"index":0') > 1000


def test_both_kinds_side_by_side(serve: Write, make_model: Any, make_writer: Any) -> None:
    make_writer("poet")
    make_model("sentiment")
    server = serve("sentiment", "poet")
    assert server.predict("x").status_code == 200
    ask = {"model": "poet", "prompt": "a", "max_tokens": 1}
    assert server.client.post("/v1/completions", json=ask).status_code == 200
    wrong = server.client.post("/v1/completions", json={**ask, "model": "sentiment"})
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (
        400,
        "model 'sentiment' does not write; /docs lists what it does",
    )
    assert server.client.post("/v1/models/poet:predict", json={"instances": ["a"]}).status_code == 404
    assert server.client.get("/v2/models/poet").json()["platform"] == "fastserve_engine"
    assert server.client.get("/v2/models/poet/ready").json() == {"name": "poet", "ready": True}
    assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["sentiment", "poet"]


def test_tokens_there_and_back(write: Write) -> None:
    client = write().client
    found = client.post("/tokenize", json={"prompt": "床前 moon 🙂", "return_token_strs": True}).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 4096
    assert client.post("/detokenize", json={"tokens": found["tokens"][1:]}).json() == {"prompt": "床前 moon 🙂"}
    chat = client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    assert chat["count"] > 5
    assert client.post("/tokenize", json={}).status_code == 400


def test_figures_have_the_names_of_dashboards(write: Write) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    server = write()
    server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 5, "n": 2})
    until(lambda: figure(server.url, "vllm:generation_tokens_total") >= 10)
    text = httpx.get(f"{server.url}/metrics").text
    found = {family.name: family for family in text_string_to_metric_families(text)}
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "inter_token_latency_seconds"):
        assert found[f"vllm:{name}"].type == "histogram"
    assert found["vllm:kv_cache_usage_perc"].samples[0].labels == {"model_name": "poet", "engine": "0"}
    for name in ("num_preemptions", "prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "request_success"):
        assert found[f"vllm:{name}"].type == "counter"
    for name in ("level_texts", "paused_texts", "swapped_texts", "recomputed_tokens", "slowdown", "cache_usage"):
        assert f"fastserve_{name}" in found
    assert figure(server.url, "fastserve_slowdown_count") == 1
