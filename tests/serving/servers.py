"""A whole server in processes of its own, with its log read as it comes."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

_RUN = """
import json, sys
from fastserve.errors import FastServeError
from fastserve.serving import ServeOptions, serve
try:
    sys.exit(serve(json.loads(sys.argv[1]), ServeOptions(**json.loads(sys.argv[2])), source=sys.argv[3]))
except FastServeError as error:
    print(json.dumps({"event": "error", "message": str(error)}), file=sys.stderr)
    sys.exit(error.exit_code)
"""
FAKE = "fastserve.serving.fake:FakeSource"


def children(of: int, running: bytes = b"") -> list[int]:
    """Process ids of the children of a process that live; running: words of their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == of and fields[0] != "Z" and running in command:
            found.append(int(folder.name))
    return found


class Server:
    """A server in processes of its own; its log is read as it comes."""

    def __init__(self, *models: str, source: str = FAKE, **options: Any) -> None:
        command = [sys.executable, "-c", _RUN, json.dumps(models), json.dumps({"port": 0, **options}), source]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._seen: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("{"):
                self._events.put(json.loads(line))

    def wait_for(self, event: str, seconds: float = 20.0) -> dict[str, Any]:
        """The next such event of the log."""
        end = time.monotonic() + seconds
        while True:
            try:
                found = self._events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no '{event}' within {seconds} s; the log:\n{''.join(self.lines)}")
            if found["event"] == event:
                return found

    def ready(self) -> Server:
        self.port = int(self.wait_for("serving", 90)["address"].rsplit(":", 1)[1])
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def workers(self) -> list[int]:
        """Process ids of the workers that live."""
        return children(self.process.pid)

    def predict(self, *texts: str, model: str = "sentiment") -> httpx.Response:
        return httpx.post(f"{self.url}/v1/models/{model}:predict", json={"instances": texts}, timeout=10)

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"it did not happen in {seconds} s; the log:\n{''.join(self.lines)}")
            time.sleep(0.02)

    def answers(self) -> bool:
        try:
            return self.predict("x").status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
