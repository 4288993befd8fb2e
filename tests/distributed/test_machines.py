"""Several machines for real: hosts with a network of their own, where one dies, is cut off, comes late or leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import FAULTY, assert_same, checkpoint, ended, failed, finished, start, step, wait_for

from hosts import Host, Hosts

MakeHosts = Callable[..., Hosts]
FAST = ["train.checkpoint_seconds=0", "distributed.timeout_seconds=60", "--workers", "1"]
WORDS = [*FAULTY, *FAST, "train.epochs=6"]
ONE_PLACE = ["--rendezvous", "host0:29400"]
TWO_PLACES = ["--rendezvous", "host0:29400,host1:29400"]


def on(host: Host, home: Path, *words: str) -> subprocess.Popen[str]:
    return start(home, *WORDS, *words, run=host.popen)


def all_ended(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[dict[str, Any]], str]:
    """The results of commands that end well, and all that they said."""
    ends = [ended(process, 0) for process in processes]
    return [json.loads(out.splitlines()[-1]) for out, _ in ends], "".join(said for _, said in ends)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    weights, _ = finished(start(tmp_path_factory.mktemp("undisturbed"), *WORDS, "--workers", "2"))
    return dict(weights)


def test_two_machines_share_a_run_and_end_alike(
    make_hosts: MakeHosts, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    """Data is prepared once, and one of them publishes."""
    hosts = make_hosts(2)
    words = [*ONE_PLACE, "--nodes", "2", "--name", "both"]
    processes = [on(host, tmp_path, *words) for host in hosts]
    results, said = all_ended(processes)
    assert results[0] == results[1]
    assert results[0]["model"] == "both@1"
    assert [path.name for path in (tmp_path / "models/both").iterdir() if path.name.isdecimal()] == ["1"]
    assert len(list(tmp_path.glob("runs/*-*"))) == 1
    assert said.count("rows: ") == 1
    from safetensors.torch import load_file

    assert_same(load_file(Path(results[0]["folder"]) / "model.safetensors"), undisturbed)


@pytest.mark.heavy
def test_a_run_is_not_shared_with_another_launch(make_hosts: MakeHosts, tmp_path: Path) -> None:
    hosts = make_hosts(1)
    long = "train.epochs=500"
    process = on(hosts[0], tmp_path, *ONE_PLACE, "--nodes", "1:2", long)
    wait_for(checkpoint(tmp_path), process)
    assert "going on in another process" in failed(start(tmp_path, *WORDS, long), 1)
    assert "going on in another process" in failed(
        on(hosts[0], tmp_path, "--nodes", "1:2", "--rendezvous", "host0:29999", long), 1
    )
    process.send_signal(signal.SIGTERM)
    failed(process, 143)


@pytest.mark.heavy
def test_a_home_that_is_not_shared_is_said_to_be_so(make_hosts: MakeHosts, tmp_path: Path) -> None:
    hosts = make_hosts(2)
    processes = [on(host, tmp_path / host.name, *ONE_PLACE, "--nodes", "2") for host in hosts]
    assert "$FASTSERVE_HOME is not shared by the machines" in failed(processes[1], 1)
    began = time.monotonic()
    said = failed(processes[0], 1)
    assert time.monotonic() - began < 20, "the one that keeps the meeting does not wait in vain"
    assert "host1 came to host0:29400 and does not see what is written here" in said


@pytest.mark.heavy
def test_a_machine_that_comes_late_is_taken_in_and_one_that_leaves_is_done_without(
    make_hosts: MakeHosts, tmp_path: Path
) -> None:
    hosts = make_hosts(2)
    words = [*ONE_PLACE, "--nodes", "1:2", "train.epochs=40"]
    first = on(hosts[0], tmp_path, *words)
    wait_for(checkpoint(tmp_path), first)
    second = on(hosts[1], tmp_path, *words)
    wait_for(lambda: list(tmp_path.glob("runs/*/workers/heartbeat-1.json")), first)
    wait_for(step(tmp_path, 1, ranks=(1,)), first)
    second.send_signal(signal.SIGTERM)
    failed(second, 143)
    _, said = finished(first)
    assert said.count("resumed at step") >= 2, "once when the other came, once when it left"


@pytest.mark.heavy
def test_the_machine_where_they_meet_dies_and_the_others_meet_at_the_next(
    make_hosts: MakeHosts, tmp_path: Path
) -> None:
    hosts = make_hosts(3)
    words = [*TWO_PLACES, "--nodes", "1:3", "train.epochs=12"]
    first = on(hosts[0], tmp_path, *words)
    wait_for(lambda: list(tmp_path.glob("runs/*/workers/meeting.json")), first)
    others = [on(host, tmp_path, *words) for host in list(hosts)[1:]]
    wait_for(step(tmp_path, 20, ranks=(0, 1, 2)), others[0], 200)
    hosts[0].end()
    first.communicate()
    results, said = all_ended(others)
    assert "the machines meet at host1:29400 from now on" in said
    assert "resumed at step" in said
    assert results[0] == results[1]


@pytest.mark.heavy
@pytest.mark.parametrize(("number", "seconds"), [(0, 90), (1, 30)])
def test_a_machine_that_is_cut_off_comes_back(
    make_hosts: MakeHosts, tmp_path: Path, number: int, seconds: float
) -> None:
    """0: the one where they meet, which the others leave. 1: another one, which they go on without."""
    hosts = make_hosts(3)
    words = [*TWO_PLACES, "--nodes", "1:3", "train.epochs=30", "distributed.timeout_seconds=15"]
    first = on(hosts[0], tmp_path, *words)
    wait_for(lambda: list(tmp_path.glob("runs/*/workers/meeting.json")), first)
    processes = [first, *(on(host, tmp_path, *words) for host in list(hosts)[1:])]
    wait_for(step(tmp_path, 20, ranks=(0, 1, 2)), first, 200)
    hosts[number].cut_off()
    time.sleep(seconds)
    hosts[number].heal()
    results, said = all_ended(processes)
    assert results[0] == results[1] == results[2]
    assert ("the machines meet at host1:29400 from now on" in said) == (number == 0)
