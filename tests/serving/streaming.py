"""What tests of streams need: raw requests, server-sent events as they stand on the wire, and the server's figures."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx


def post(path: str, content: dict[str, Any], headers: str = "") -> bytes:
    body = json.dumps(content).encode()
    return f"POST {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def completion(prompt: str = "a", **fields: Any) -> bytes:
    return post("/v1/completions", {"model": "poet", "prompt": prompt, **fields})


def read_head(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, and what came behind them."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, "closed before the head was whole"
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), rest


def chunks(connection: socket.socket, data: bytes) -> Iterator[bytes]:
    """The chunks of a body, up to and with the last, which is empty."""
    while True:
        while b"\r\n" not in data:
            data += _more(connection)
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        while len(data) < length + 2:
            data += _more(connection)
        assert data[length : length + 2] == b"\r\n"
        yield data[:length]
        data = data[length + 2 :]
        if not length:
            assert not data
            return


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    assert part, "closed within a chunk"
    return part


def events(data: bytes) -> list[Any]:
    """The content of server-sent events; [DONE] as it is."""
    found = []
    for block in data.decode().split("\n\n"):
        if block:
            assert block.startswith("data: "), block
            word = block.removeprefix("data: ")
            found.append(word if word == "[DONE]" else json.loads(word))
    return found


def figure(url: str, name: str, headers: dict[str, str] | None = None) -> float:
    """One line of the metrics."""
    text = httpx.get(f"{url}/metrics", timeout=10, headers=headers).text
    found = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert found is not None, f"{name} is not in the metrics"
    return float(found[1])


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def is_empty(url: str, headers: dict[str, str] | None = None) -> bool:
    """Whether nothing is left in the engine: no text, no block."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(figure(url, name, headers) == 0 for name in names)
