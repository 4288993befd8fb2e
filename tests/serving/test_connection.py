"""What a socket can do to the server: rubbish, dawdling, leaving, pipelining."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rawhttp import ask, connect, read_reply, request

Serve = Callable[..., Any]
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def is_closed(connection: socket.socket, seconds: float = 5.0) -> bool:
    """Whether the server closes it within `seconds`."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            continue
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbroken header\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nauthorization: a\r\nauthorization: b\r\n\r\n", 400),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % n for n in range(101)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\ncookie: " + b"a" * 1_000_000, 431),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx", 415),
        (b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"DELETE / HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    ],
)
def test_rubbish_is_refused_and_the_server_goes_on(serve: Serve, data: bytes, status: int) -> None:
    server = serve()
    assert ask(server.port, data)[0] == status
    assert server.predict("fine").status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_get_an_answer_or_an_end(fuzzed: Any, data: bytes, as_body: bool) -> None:
    message = b"POST /v2/models/sentiment/infer HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
    with connect(fuzzed.port) as connection:
        connection.sendall(message if as_body else data)
        connection.shutdown(socket.SHUT_WR)
        assert is_closed(connection)
    assert ask(fuzzed.port, LIVE)[0] == 200


@pytest.fixture
def fuzzed(serve: Serve) -> Any:
    return serve()


def test_a_request_in_single_bytes(serve: Serve) -> None:
    with connect(serve().port) as connection:
        for position in range(len(request("很好"))):
            connection.sendall(request("很好")[position : position + 1])
        assert read_reply(connection)[0] == 200


def test_a_chunked_body(serve: Serve) -> None:
    body = b'{"instances":["a"]}'
    chunks = b"".join(b"1;ext=1\r\n%c\r\n" % byte for byte in body) + b"0\r\ntrailer: x\r\n\r\n"
    head = b"POST /v1/models/sentiment:predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert ask(serve().port, head + chunks)[0] == 200


def test_a_chunked_body_over_the_limit(serve: Serve) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(serve(max_body_bytes=1000).port) as connection:
        connection.sendall(head + b"400\r\n" + b"a" * 0x400)
        assert read_reply(connection)[0] == 413
        assert is_closed(connection)


@pytest.mark.parametrize("endless", [b"1;" + b"x" * 1_000_000, b"0\r\ntrailer: " + b"x" * 1_000_000])
def test_endless_chunk_extensions_and_trailers(serve: Serve, endless: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(serve().port) as connection:
        connection.sendall(head + endless)
        assert read_reply(connection)[0] in (400, 431)


def test_the_answer_arrives_though_the_client_still_sends(serve: Serve) -> None:
    with connect(serve(max_body_bytes=1000).port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n")
        for _ in range(30):
            connection.sendall(b"x" * 100_000)
        assert read_reply(connection)[0] == 413


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    server = serve(settings={"seconds": 0.001})
    texts = [f"text {number}" for number in range(50)]
    expected = [server.predict(text).content for text in texts]
    with connect(server.port) as connection:
        connection.sendall(b"".join(request(text) for text in texts))
        found = b""
        while found.count(b"HTTP/1.1 200") < 50 or not found.endswith(b"}]}"):
            found += connection.recv(65536)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in found.split(b"HTTP/1.1 ")[1:]]
    assert bodies == expected


def test_thousands_of_pipelined_requests_do_not_nest(serve: Serve) -> None:
    with connect(serve().port) as connection:
        connection.sendall(LIVE * 5000 + b"GET /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n")
        data = b""
        while more := connection.recv(1 << 20):
            data += more
    assert data.count(b"200 OK") == 5001


def test_rubbish_behind_a_good_request_does_not_take_its_answer(serve: Serve) -> None:
    with connect(serve(settings={"seconds": 0.05}).port) as connection:
        connection.sendall(request("slow") + b"rubbish\r\n\r\n")
        data = b""
        while more := connection.recv(65536):
            data += more
    assert re.findall(rb"HTTP/1\.1 (\d+) ", data) == [b"200", b"400"]


def test_keep_alive_and_its_end(serve: Serve) -> None:
    with connect(serve().port) as connection:
        connection.sendall(LIVE)
        assert "connection" not in read_reply(connection)[1]
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert read_reply(connection)[1]["connection"] == "close"
        assert is_closed(connection)


def test_head_has_no_body(serve: Serve) -> None:
    with connect(serve().port) as connection:
        connection.sendall(b"HEAD /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n")
        data = b""
        while more := connection.recv(65536):
            data += more
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert data.endswith(b"\r\n\r\n")


def test_expect_continue(serve: Serve) -> None:
    body = b'{"instances":["a"]}'
    with connect(serve().port) as connection:
        connection.sendall(
            b"POST /v1/models/sentiment:predict HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
            % len(body)
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert read_reply(connection)[0] == 200


def test_an_upgrade_is_answered_in_http_1(serve: Serve) -> None:
    with connect(serve().port) as connection:
        upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n\r\n"
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n" + upgrade)
        assert read_reply(connection)[0] == 200
        connection.sendall(LIVE)
        assert read_reply(connection)[0] == 200


def test_request_ids(serve: Serve) -> None:
    port = serve().port
    assert ask(port, request("a", headers="X-Request-Id: mine-1\r\n"))[1]["x-request-id"] == "mine-1"
    made = [ask(port, request("a"))[1]["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert ask(port, request("a", headers="X-Request-Id: a b\r\n"))[1]["x-request-id"] != "a b"


@pytest.mark.parametrize(
    ("sent", "part"),
    [(b"GET / HTTP/1.1\r\nhos", b"headers"), (b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nab", b"body")],
)
def test_slow_senders_are_ended(serve: Serve, sent: bytes, part: bytes) -> None:
    server = serve(header_seconds=0.2, body_seconds=0.2)
    with connect(server.port) as connection:
        connection.sendall(sent)
        status, _, body = read_reply(connection)
        assert (status, part in body) == (408, True)
        assert is_closed(connection)
    wait_for(lambda: not server.node.connections.open)


def test_dripping_does_not_win_time(serve: Serve) -> None:
    with connect(serve(header_seconds=0.3).port) as connection:
        start = time.monotonic()
        connection.settimeout(0.05)
        connection.sendall(b"GET / HTTP/1.1\r\n")
        answered = False
        while not answered and time.monotonic() - start < 5:
            try:
                connection.sendall(b"a: b\r\n")
                answered = bool(connection.recv(100))
            except TimeoutError:
                continue
        assert answered


def test_resting_connections_are_closed(serve: Serve) -> None:
    with (
        connect(serve(header_seconds=0.2, idle_seconds=0.2).port) as silent,
        connect(silent.getpeername()[1]) as resting,
    ):
        resting.sendall(LIVE)
        read_reply(resting)
        assert is_closed(silent)
        assert is_closed(resting)


def test_a_client_that_leaves_frees_its_work(serve: Serve) -> None:
    server = serve(settings={"seconds": 0.05})
    with connect(server.port) as first:
        first.sendall(request(*["x"] * 4))
        with connect(server.port) as leaver:
            leaver.sendall(request(*["y"] * 200))
            runner = server.node.slots["sentiment"].current.runner
            wait_for(lambda: runner.batcher.counts.accepted >= 2)
        wait_for(lambda: runner.batcher.counts.cancelled == 1)
        assert read_reply(first)[0] == 200
    wait_for(lambda: not runner.batcher.has_work, 1.0)  # 200 texts would have taken 10 s
    assert server.node.board.total("sentiment", "cancelled") == 1


def test_leaving_in_the_middle_of_a_body(serve: Serve) -> None:
    server = serve()
    for _ in range(50):
        with connect(server.port) as connection:
            connection.sendall(request("很好")[: -random.Random(1).randrange(1, 20)])
    wait_for(lambda: not server.node.connections.open)
    assert server.predict("fine").status_code == 200


def test_a_client_that_takes_no_answers_is_not_read_for_ever(serve: Serve) -> None:
    server = serve(write_seconds=0.5, header_seconds=1.0)
    with connect(server.port) as connection:
        connection.settimeout(0.2)
        sent = 0
        page = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
        with contextlib.suppress(OSError):  # a time-out: nobody reads any more
            while sent < 20_000_000:
                sent += connection.send(page * 100)
        assert sent < 20_000_000
        wait_for(lambda: not server.node.connections.open)


def test_too_many_connections_wait_their_turn(serve: Serve) -> None:
    server = serve(max_connections=2, header_seconds=0.5, idle_seconds=0.5)
    others = [connect(server.port) for _ in range(2)]
    wait_for(lambda: len(server.node.connections.open) == 2)
    with connect(server.port) as third:
        third.sendall(LIVE)
        for other in others:
            other.close()
        assert read_reply(third)[0] == 200
