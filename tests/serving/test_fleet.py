"""`fastserve serve --replicas`: several servers behind one address, which live and end together."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from servers import Server, children


@pytest.fixture
def fleet(make_model: Callable[..., Path]) -> Iterator[Server]:
    """Two replicas of a fake model, both ready."""
    make_model("sentiment")
    server = started("sentiment")
    try:
        server.until(lambda: ready(server) == 2, 60)
        yield server
    finally:
        server.close()


def started(*models: str) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(*models, replicas=2, port=port, drain_seconds=2)
    server.port, server.url = port, f"http://127.0.0.1:{port}"
    return server


def ready(server: Server) -> int:
    try:
        text = httpx.get(f"{server.url}/metrics", timeout=5).text
    except httpx.HTTPError:
        return 0
    return len(re.findall(r"^fastserve_router_ready\{.*\} 1$", text, re.MULTILINE))


def test_one_that_is_killed_comes_back_and_the_other_answers_meanwhile(fleet: Server) -> None:
    killed = fleet.workers()[0]
    os.kill(killed, signal.SIGKILL)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert fleet.predict("good").status_code == 200
    fleet.until(lambda: ready(fleet) == 2, 60)
    now = fleet.workers()
    assert len(now) == 2
    assert killed not in now


def test_a_signal_ends_all_of_them(fleet: Server) -> None:
    members = fleet.workers()
    below = [child for member in members for child in children(member)]
    assert len(members) == len(below) == 2
    assert fleet.stop() == 0
    assert gone_within(5, *members, *below)


def test_they_end_with_the_one_that_started_them(fleet: Server) -> None:
    members = fleet.workers()
    below = [child for member in members for child in children(member)]
    fleet.process.kill()
    fleet.process.wait(10)
    assert gone_within(20, *members, *below)


def test_a_model_that_cannot_be_served_ends_the_whole_with_its_reason(fastserve_home: Path) -> None:
    server = started("nothing")
    try:
        assert server.process.wait(60) not in (0, None)
        server.until(lambda: any("nothing" in line for line in server.lines))
    finally:
        server.close()


def gone_within(seconds: float, *processes: int) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{process}").exists() and not is_zombie(process) for process in processes):
            return True
        time.sleep(0.05)
    return False


def is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
