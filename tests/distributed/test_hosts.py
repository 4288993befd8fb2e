"""Hosts in network namespaces are what the tests of several hosts believe they are."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hosts import Host, Hosts, remove_leftovers
from link import Link

MakeHosts = Callable[..., Hosts]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

LISTEN = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        while block := connection.recv(1 << 16):
            if len(block) == 1:
                connection.sendall(block)  # a one-byte message is answered
        connection.sendall(b"!")
"""
ROUND_TRIP = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 5000), timeout=2) as connection:
    start = time.perf_counter()
    for _ in range(5):
        connection.sendall(b".")
        connection.recv(1)
    print((time.perf_counter() - start) / 5)
"""
SEND = """
import socket, sys, time
start = time.perf_counter()
with socket.create_connection((sys.argv[1], 5000)) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
print(time.perf_counter() - start)
"""


def listen(host: Host) -> None:
    process = host.popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()


def seconds(host: Host, program: str, *words: str) -> float:
    done = host.run([sys.executable, "-c", program, *words])
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_hosts_have_names_and_reach_each_other_by_them(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(3)
    listen(hosts[0])
    assert seconds(hosts[1], ROUND_TRIP, "host0") < 0.5
    assert seconds(hosts[2], ROUND_TRIP, hosts[0].address) < 0.5
    named = hosts[2].run(
        [sys.executable, "-c", "import socket; print(name := socket.gethostname(), socket.gethostbyname(name))"]
    )
    assert named.stdout.split() == ["host2", hosts[2].address]


def test_a_host_that_is_cut_off_hears_nothing_until_it_is_healed(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2)
    listen(hosts[0])
    hosts[0].cut_off()
    lost = hosts[1].run([sys.executable, "-c", ROUND_TRIP, "host0"])
    silence = ("TimeoutError", "No route to host")  # not refused: packets vanish, as they do when a cable is cut
    assert lost.stderr.strip().endswith(silence) or "TimeoutError" in lost.stderr
    hosts[0].heal()
    assert seconds(hosts[1], ROUND_TRIP, "host0") < 0.5


def test_a_slow_link_has_its_latency_and_its_bandwidth(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2, Link(megabits=40, delay_seconds=0.02))
    listen(hosts[0])
    assert 0.04 < seconds(hosts[1], ROUND_TRIP, "host0") < 0.4
    before, size = hosts[1].bytes_sent(), 2_000_000
    lasted = seconds(hosts[1], SEND, "host0", str(size))
    assert 0.9 < lasted / (size * 8 / 40e6) < 5.0  # slower than the line at first, while TCP finds out what it bears
    assert size < hosts[1].bytes_sent() - before < 1.1 * size
    assert hosts[0].bytes_received() > size


def test_each_host_may_have_a_link_of_its_own(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2, links=[Link(), Link(megabits=20)])
    listen(hosts[0])
    assert seconds(hosts[1], SEND, "host0", "1000000") > 0.35


def test_signals_reach_the_program_itself(make_hosts: MakeHosts) -> None:
    host = make_hosts(1)[0]
    process = host.popen(["sh", "-c", "echo ready; exec sleep 60"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
    assert host.processes() == [process.pid]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM


def leftovers(prefix: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(prefix)] + [
        str(path) for path in Path("/etc/netns").glob(prefix + "*")
    ]


def test_nothing_is_left_after_a_failure(make_hosts: MakeHosts) -> None:
    hosts = make_hosts(2, Link(delay_seconds=0.01))
    process = hosts[1].popen(["sleep", "60"])
    assert leftovers(hosts.prefix)
    with pytest.raises(ZeroDivisionError), hosts:
        1 / 0  # noqa: B018
    assert leftovers(hosts.prefix) == []
    assert process.wait(timeout=5) == -signal.SIGKILL


def test_nothing_is_left_of_a_killed_run_when_the_next_begins(make_hosts: MakeHosts) -> None:
    code = """
import time
from hosts import Hosts, Link
hosts = Hosts.start(2, Link(delay_seconds=0.01))
sleeper = hosts[0].popen(["sleep", "60"])
print(hosts.prefix, sleeper.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=BENCHMARKS)
    assert process.stdout is not None
    prefix, sleeper = process.stdout.readline().split()
    process.kill()
    process.wait()
    process.stdout.close()
    assert leftovers(prefix)
    remove_leftovers()
    assert leftovers(prefix) == []
    deadline = time.monotonic() + 5
    while Path(f"/proc/{sleeper}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{sleeper}").exists()
