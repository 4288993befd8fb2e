"""A client that sends exactly the bytes it is told to, and one that asks as fast as it can."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field


def request(*texts: str, path: str = "/v1/models/sentiment:predict", headers: str = "") -> bytes:
    body = json.dumps({"instances": list(texts)}).encode()
    return f"POST {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def connect(port: int, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def read_reply(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one reply; ConnectionError where it ends early."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += _more(connection)
    return int(first.split()[1]), headers, body


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionResetError("closed before the reply was whole")
    return data


def ask(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with connect(port) as connection:
        connection.sendall(data)
        return read_reply(connection)


@dataclass
class Load:
    """Several clients that ask one request after another. outcomes: how each ended, by status or the error's name."""

    port: int
    clients: int = 4
    timeout: float = 10.0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection: socket.socket | None = None
        while not self._stop.is_set():
            start = time.monotonic()
            sent = False
            try:
                connection = connection or connect(self.port, self.timeout)
                connection.sendall(request("很好"))
                sent = True
                status, headers, _ = read_reply(connection)
                self.outcomes[str(status)] += 1
                if headers.get("connection") == "close":
                    connection = self._leave(connection)
            except OSError as error:
                self.outcomes[type(error).__name__ + (" after sending" if sent else "")] += 1
                connection = self._leave(connection)
            self.slowest = max(self.slowest, time.monotonic() - start)
        self._leave(connection)

    @staticmethod
    def _leave(connection: socket.socket | None) -> None:
        if connection is not None:
            connection.close()
        time.sleep(0.005)
