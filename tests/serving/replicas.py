"""Servers for a router to stand before: real sockets, and answers that say who gave them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer:
    """state: "ready", "full" (503), or "dies" (an answer breaks off). seen: bodies of requests, in order."""

    def __init__(self, name: str) -> None:
        self.name, self.state, self.pause = name, "ready", 0.0
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Event()
        """Set when a client left before its answer was whole."""
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/v2/health/ready":
                    self.whole(200, {"ready": True})
                else:
                    self.whole(200, {"path": self.path, "server": server.name})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.seen.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                if server.state == "full":
                    self.whole(503, {"error": "full"}, [("Retry-After", "7")])
                elif body.get("stream"):
                    self.stream(body.get("max_tokens", 3))
                elif server.state == "dies":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                    self.close_connection = True
                else:
                    time.sleep(server.pause)
                    self.whole(200, {"server": server.name}, [("X-Who", server.name)])

            def whole(self, status: int, content: Any, headers: list[tuple[str, str]] | None = None) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body)))):
                    self.send_header(name, value)
                for name, value in headers or []:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def stream(self, count: int) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for number in range(count):
                        self.event({"n": number, "server": server.name})
                        if server.state == "dies":
                            self.close_connection = True
                            return
                        time.sleep(server.pause)
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    server.left.set()

            def event(self, content: Any) -> None:
                data = f"data: {json.dumps(content)}\n\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

            def log_message(self, format: str, *words: Any) -> None:
                """Nothing."""

        return Handler


@contextmanager
def fake_servers(*names: str) -> Iterator[list[FakeServer]]:
    servers = [FakeServer(name) for name in names]
    for server in servers:
        threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield servers
    finally:
        for server in servers:
            server.http.shutdown()
            server.http.server_close()
