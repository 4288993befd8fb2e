"""The check before a run, by real processes: on one machine, and on several hosts where namespaces are allowed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fastserve.distributed.network import Endpoint
from fastserve.distributed.preflight import limits
from fastserve.distributed.preflight.links import Responder, measure
from fastserve.distributed.preflight.messages import Card
from fastserve.distributed.preflight.places import HERE, REACHED, Places
from hosts import Host, Hosts

MakeHosts = Callable[..., Hosts]
Popen = Callable[..., "subprocess.Popen[str]"]
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
NODE = Path(__file__).with_name("preflight_node.py")
DATA = "text\tlabel\ngood\tyes\nbad\tno\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def doctor(rendezvous: str, nodes: int, *words: str, seconds: float = 120) -> list[str]:
    command = [sys.executable, "-m", "fastserve", "doctor", *words, "--rendezvous", rendezvous]
    return [*command, "--nodes", str(nodes), "--timeout", str(seconds), "--json"]


class Node:
    """A started check."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.said = process, ""

    def until(self, words: str) -> None:
        """Wait until it says `words`."""
        assert self.process.stderr is not None
        while words not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def end(self) -> dict[str, Any]:
        """Its JSON, when it has ended."""
        output, errors = self.process.communicate(timeout=150)
        self.said += errors
        result: dict[str, Any] = json.loads(output.splitlines()[-1]) if output.strip() else {}
        return {**result, "exit": self.process.returncode}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Start a command on this machine; what still runs after the test is ended."""
    with ExitStack() as stack:

        def start(command: Sequence[str], env: Mapping[str, str] | None = None, folder: Path = tmp_path) -> Node:
            process = subprocess.Popen(command, env={**os.environ, **(env or {})}, cwd=folder, **PIPES)
            stack.enter_context(process)
            stack.callback(process.kill)
            return Node(process)

        yield start


def on(host: Host, command: Sequence[str], folder: Path) -> Node:
    return Node(host.popen(command, cwd=folder, **PIPES))


def texts(found: Mapping[str, Any]) -> list[str]:
    return [finding["text"] for finding in found["findings"]]


def odd(found: Mapping[str, Any], words: str) -> list[str]:
    """Who is odd in the finding that has `words` in it."""
    (finding,) = [finding for finding in found["findings"] if words in finding["text"]]
    names: list[str] = finding["odd"]
    return names


def write_job(folder: Path, data: str = DATA) -> Path:
    folder.mkdir()
    (folder / "data.tsv").write_text(data)
    (folder / "job.yaml").write_text("task: classification\ndata: {train: data.tsv}\n")
    return folder


# On one machine


def test_two_nodes_that_are_alike_are_ready(here: Callable[..., Node], tmp_path: Path) -> None:
    place, job = f"127.0.0.1:{free_port()}", write_job(tmp_path / "job")
    nodes = [here(doctor(place, 2, "job.yaml", "train.epochs=2"), folder=job) for _ in range(2)]
    found = [node.end() for node in nodes]
    assert [one["exit"] for one in found] == [0, 0], nodes[0].said
    assert found[0] == found[1]  # all nodes say the same
    assert [one["level"] for one in found[0]["findings"] if one["level"] == "fault"] == []
    first = found[0]["nodes"][0]
    assert len(first["data"]["data.tsv"]) == 64
    assert first["configuration"]["train"]["epochs"] == 2
    assert first["links"][0]["bytes_per_second"] > 1e6
    assert list((Path(os.environ["FASTSERVE_HOME"])).iterdir()) == []  # no mark is left


@pytest.mark.heavy
def test_two_nodes_that_differ_say_in_what(here: Callable[..., Node], tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    left, right = write_job(tmp_path / "left"), write_job(tmp_path / "right", DATA + "fine\tyes\n")
    nodes = [
        here(doctor(place, 2, "job.yaml", "train.seed=1"), {"FASTSERVE_HOME": str(tmp_path / "a")}, folder=left),
        here(doctor(place, 2, "job.yaml", "train.seed=2"), {"FASTSERVE_HOME": str(tmp_path / "b")}, folder=right),
    ]
    found = nodes[0].end()
    assert nodes[1].end()["exit"] == found["exit"] == 1
    said = "\n".join(texts(found))
    assert "configuration train.seed: 1 on" in said or "configuration train.seed: 2 on" in said
    assert "data.tsv: sha256" in said
    assert "$FASTSERVE_HOME is not one shared folder" in said


@pytest.mark.heavy
def test_a_node_that_never_comes_is_missed(here: Callable[..., Node]) -> None:
    place = f"127.0.0.1:{free_port()}"
    found = here(doctor(place, 3, seconds=1)).end()
    assert found["exit"] == 1
    name = socket.gethostname()
    assert texts(found)[0] == f"1 of 3 nodes came to {place} within 1 s: {name} (127.0.0.1); 2 missing"


@pytest.mark.heavy
def test_a_node_that_falls_silent_is_named(here: Callable[..., Node]) -> None:
    place = f"127.0.0.1:{free_port()}"
    host = here(doctor(place, 3))
    host.until("is here: 1 of 3")
    stopped = here(doctor(place, 3))
    host.until("is here: 2 of 3")
    stopped.process.send_signal(signal.SIGSTOP)
    third = here(doctor(place, 3))
    found = host.end()
    assert third.end()["findings"] == found["findings"]
    assert found["exit"] == 1
    assert found["silent"] == [f"{socket.gethostname()}#1"]
    assert odd(found, "came, then fell silent") == [f"{socket.gethostname()}#1"]


def test_nobody_at_the_address(here: Callable[..., Node]) -> None:
    elsewhere = here(doctor("192.0.2.1:29400", 2, seconds=1))  # an address that no machine may have
    assert elsewhere.end()["exit"] == 1
    assert "nobody is met at 192.0.2.1:29400 within 1 s" in elsewhere.said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rendezvous", "localhost"], "expected HOST:PORT"),
        (["--rendezvous", "localhost:29400"], "Add --nodes N"),
        (["distributed.nodes=2"], "Add --rendezvous HOST:PORT"),
    ],
)
def test_words_that_are_wrong(here: Callable[..., Node], words: list[str], said: str) -> None:
    node = here([sys.executable, "-m", "fastserve", "doctor", *words])
    assert node.end()["exit"] == 2
    assert said in node.said


@pytest.mark.heavy
def test_another_program_at_the_address_is_told(here: Callable[..., Node]) -> None:
    """A store's client would wait for its answer without end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = here(doctor(f"127.0.0.1:{server.getsockname()[1]}", 2))
        assert node.end()["exit"] == 1
    assert "is no meeting of FastServe: no answer within 10 s" in node.said


def card(responder: Responder, **changes: Any) -> Card:
    values = {"number": 1, "name": "x", "address": "127.0.0.1", "port": responder.port, "token": responder.token}
    return Card.model_validate({**values, "host": True, "fastserve": "1", **changes})


def test_a_link_is_measured_with_the_other_clock() -> None:
    with Responder("127.0.0.1", lambda: time.time() + 7) as responder:
        link = measure(card(responder), time.time)
    assert link.error is None
    assert link.clock_ahead_seconds == pytest.approx(7, abs=0.05)
    assert link.round_trip_seconds is not None
    assert link.round_trip_seconds < 0.05
    assert link.bytes_per_second is not None
    assert link.bytes_per_second > 1e7


def test_strangers_are_not_answered_and_what_is_gone_is_told() -> None:
    with Responder("127.0.0.1", time.time) as responder:
        wrong = measure(card(responder, token="0" * 32), time.time)
        gone = card(responder)
    assert wrong.error is not None
    assert "another program, or the connection broke" in wrong.error
    assert "Connection refused" in str(measure(gone, time.time).error)


def test_the_next_place_is_listened_at_and_tried() -> None:
    own, silent = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    unknown = Endpoint("no-such-host.invalid", 29400)
    with Places([own, silent]), Places([]) as other:
        other.endpoints = [own, unknown]
        found = other.reached()
        assert found[str(own)] == REACHED
        assert found[str(unknown)] not in (HERE, REACHED)
        taken = Places([own])
        with taken:
            assert "its port is not free" in taken.reached()[str(own)]
    with Places([own]) as mine:
        assert mine.reached() == {str(own): HERE}
    other.endpoints = [own]
    assert other.reached()[str(own)] == "Connection refused"


def test_work_that_lasts_too_long_is_left_behind() -> None:
    assert limits.within(5, lambda: 3) == 3
    with pytest.raises(TimeoutError, match="within 0 s"):
        limits.within(0.05, lambda: time.sleep(2))
    with pytest.raises(ZeroDivisionError):
        limits.within(5, lambda: 1 // 0)


# On several hosts


def test_of_three_hosts_the_odd_ones_are_named(make_hosts: MakeHosts, tmp_path: Path) -> None:
    """host1's clock is wrong, host2 has another file; host1 and host2 do not reach each other."""
    hosts = make_hosts(3)
    for one, other in ((1, 2), (2, 1)):
        blocked = hosts[one].run(["ip", "route", "add", "blackhole", f"{hosts[other].address}/32"])
        assert blocked.returncode == 0, blocked.stderr
    jobs = [write_job(tmp_path / f"job{n}", DATA if n < 2 else "text\tlabel\nother\tyes\n") for n in range(3)]
    clocks = ["0", "-30", "0"]
    nodes = [
        on(host, [sys.executable, str(NODE), "host0:29400", "3", clock, "job.yaml"], job)
        for host, clock, job in zip(hosts, clocks, jobs, strict=True)
    ]
    found = [node.end() for node in nodes]
    assert found[0]["findings"] == found[1]["findings"] == found[2]["findings"], [node.said for node in nodes]
    assert not found[0]["passed"]
    assert odd(found[0], "the clock of host1 is 30.0 s behind") == ["host1"]
    assert odd(found[0], "data.tsv: sha256") == ["host2"]
    assert odd(found[0], "host1 does not reach host2") == []
    assert [node["address"] for node in found[0]["nodes"]] == [host.address for host in hosts]


@pytest.mark.heavy
def test_a_host_that_is_cut_off_is_named_and_nobody_hangs(make_hosts: MakeHosts, tmp_path: Path) -> None:
    hosts = make_hosts(3)
    command = doctor("host0:29400", 3)
    first = on(hosts[0], command, tmp_path)
    first.until("host0 (10.77.0.1) is here: 1 of 3")
    lost = on(hosts[2], command, tmp_path)
    first.until("host2 (10.77.0.3) is here: 2 of 3")
    hosts[2].cut_off()
    second = on(hosts[1], command, tmp_path)
    found = first.end()
    assert second.end()["findings"] == found["findings"]
    assert found["silent"] == ["host2"]
    assert odd(found, "host2 (10.77.0.3) came, then fell silent") == ["host2"]
    assert lost.end()["exit"] == 1
    assert "host0:29400 was reached, then lost: no answer within 10 s" in lost.said


@pytest.mark.heavy
def test_the_host_waits_only_so_long_for_one_that_was_never_there(make_hosts: MakeHosts, tmp_path: Path) -> None:
    hosts = make_hosts(2)
    hosts[1].cut_off()
    nodes = [on(host, doctor("host0:29400", 2, seconds=3), tmp_path) for host in hosts]
    found, lost = nodes[0].end(), nodes[1].end()
    assert "1 of 2 nodes came to host0:29400 within 3 s: host0 (10.77.0.1); 1 missing" in texts(found)
    assert lost["exit"] == 1
    assert "nobody is met at host0:29400 within 3 s" in nodes[1].said
