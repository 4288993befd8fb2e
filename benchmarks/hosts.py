"""Several hosts on one machine: Linux network namespaces around a switch, for tests and benchmarks.

    with Hosts.start(2, Link(megabits=50, delay_seconds=0.01)) as hosts:
        server = hosts[0].popen(["python", "-m", "http.server"])
        hosts[1].run(["curl", "http://host0:8000"])
        hosts[0].cut_off()
        print(hosts[0].bytes_sent())

Each host has its own addresses, host name, /etc/hosts and loopback; processes, files and cores are those of the
machine. The machine's own network is not touched: the switch lies in a namespace too. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from link import Link, Relay, open_tap

PLAIN = Link()
NETWORK = "10.77.0"
NAMES = Path("/etc/netns")
OWNED = re.compile(r"fastserve-(\d+)-\d+-\w+")
_numbers = itertools.count()


class HostsError(Exception):
    """A command that builds or changes hosts failed."""


def why_not() -> str | None:
    """Why this machine can have no hosts, or None."""
    if sys.platform != "linux":
        return f"network namespaces exist on Linux only, this is {sys.platform}"
    missing = [name for name in ("ip", "tc", "unshare", "hostname") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (packages iproute2, util-linux, hostname)"
    try:
        with Hosts.start(1, Link(megabits=1000, delay_seconds=0.001)):
            return None
    except (HostsError, OSError) as error:
        return f"this machine allows no network namespaces: {error}"


@dataclass
class Host:
    """One host. `namespace` is its name for `ip netns exec`."""

    name: str
    address: str
    namespace: str
    port: str
    switch: str
    relay: Relay | None = None
    started: list[subprocess.Popen[Any]] = field(default_factory=list)

    def popen(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **settings: Any
    ) -> subprocess.Popen[Any]:
        """Start a program on this host; `env` is laid over the environment; `settings` are those of Popen.

        The process id is the program's own, so that signals reach it.
        """
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"']
        process = subprocess.Popen([*enter, self.name, *command], env={**os.environ, **(env or {})}, **settings)
        self.started.append(process)
        return process

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, *, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on this host to its end, its output kept as text."""
        process = self.popen(command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            raise HostsError(
                f"`{' '.join(command)}` on {self.name} lasts over {timeout} s:\n{output}{errors}"
            ) from None
        return subprocess.CompletedProcess(list(command), process.returncode, output, errors)

    def cut_off(self) -> None:
        """Let every packet from and to this host be lost; nobody is told."""
        _ip("-n", self.switch, "link", "set", self.port, "nomaster")

    def heal(self) -> None:
        """Undo `cut_off`."""
        _ip("-n", self.switch, "link", "set", self.port, "master", "switch")

    def bytes_sent(self) -> int:
        """Bytes that left by the link since the host exists, headers of frames included."""
        return self._counted("tx")

    def bytes_received(self) -> int:
        return self._counted("rx")

    def processes(self) -> list[int]:
        return [int(word) for word in _ip("netns", "pids", self.namespace).split()]

    def end(self) -> None:
        """Kill every process on this host, and wait for those that were started here."""
        for process in self.started:
            process.kill()
            process.wait(timeout=10)
        _end_processes(self.namespace)

    def _counted(self, way: str) -> int:
        link = json.loads(_ip("-n", self.namespace, "-s", "-j", "link", "show", "eth0"))[0]
        return int(link["stats64"][way]["bytes"])


@dataclass
class Hosts:
    """Hosts that reach each other, by address and by name (host0, host1, ...). Closed, nothing of them is left."""

    prefix: str
    switch: str
    hosts: list[Host] = field(default_factory=list)

    @classmethod
    def start(cls, count: int, link: Link = PLAIN, *, links: Sequence[Link] | None = None) -> Hosts:
        """`count` hosts with a `link` each, or with `links` of their own."""
        remove_leftovers()
        prefix = f"fastserve-{os.getpid()}-{next(_numbers)}"
        hosts = cls(prefix, f"{prefix}-switch")
        try:
            hosts._build([link] * count if links is None else links)
        except BaseException:
            hosts.close()
            raise
        return hosts

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.hosts)

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def close(self) -> None:
        """End every process on the hosts and remove them."""
        for host in self.hosts:
            host.end()
            if host.relay is not None:
                host.relay.stop()
        self.hosts = []
        for namespace in _namespaces():
            if namespace.startswith(self.prefix + "-"):
                _remove(namespace)

    def _build(self, links: Sequence[Link]) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "switch", "up")
        for number, link in enumerate(links):
            self.hosts.append(self._host(number, link))
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        for host in self.hosts:
            lines += [f"{host.address} {host.name}", f"::ffff:{host.address} {host.name}"]  # also as IPv6 writes it
        for host in self.hosts:
            folder = NAMES / host.namespace
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text("\n".join(lines) + "\n")

    def _host(self, number: int, link: Link) -> Host:
        name = f"host{number}"
        host = Host(name, f"{NETWORK}.{number + 1}", f"{self.prefix}-{name}", f"port{number}", self.switch)
        _ip("netns", "add", host.namespace)
        _connect(host, link)
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for namespace, interface in ((host.namespace, "lo"), (host.namespace, "eth0"), (host.switch, host.port)):
            _ip("-n", namespace, "link", "set", interface, "up")
        return host


def _connect(host: Host, link: Link) -> None:
    """Lay the wire between the host's eth0 and its port of the switch."""
    if link.delay_seconds:
        _connect_by_relay(host, link)
    else:
        veth = f"link add eth0 netns {host.namespace} type veth peer name {host.port} netns {host.switch}"
        _ip(*veth.split())
    _ip("-n", host.switch, "link", "set", host.port, "master", "switch")
    if link.megabits is not None:
        _run("tc", "-n", host.namespace, *link.shaping("eth0"))
        _run("tc", "-n", host.switch, *link.shaping(host.port))


def _connect_by_relay(host: Host, link: Link) -> None:
    ends = []
    for number, (namespace, interface) in enumerate(((host.namespace, "eth0"), (host.switch, host.port))):
        temporary = f"tap{number}-{os.getpid()}"
        ends.append(open_tap(temporary))
        _ip("link", "set", temporary, "netns", namespace, "name", interface)
    host.relay = Relay(ends[0], ends[1], link.delay_seconds)


def remove_leftovers() -> None:
    """Remove the hosts of runs that were killed."""
    for namespace in _namespaces():
        owner = OWNED.fullmatch(namespace)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            with contextlib.suppress(HostsError):  # another run may be removing it
                _remove(namespace)


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line]


def _remove(namespace: str) -> None:
    _end_processes(namespace)
    _ip("netns", "delete", namespace)
    shutil.rmtree(NAMES / namespace, ignore_errors=True)


def _end_processes(namespace: str) -> None:
    """A process would keep the namespace alive, and its addresses in use."""
    deadline = time.monotonic() + 10
    while pids := _ip("netns", "pids", namespace).split():
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise HostsError(f"processes {', '.join(pids)} in {namespace} do not end")
        time.sleep(0.01)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise HostsError(f"`{' '.join(words)}`: {done.stderr.strip() or done.returncode}")
    return done.stdout
