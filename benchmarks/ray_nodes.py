"""Hosts of one machine as the machines of a Ray cluster, for tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hosts import Host, HostsError

TOKEN = {"RAY_AUTH_MODE": "token"}
"""A head demands the token that it makes, and by themselves the others have none."""
PORT = 6379


def start_node(host: Host, *words: str, folder: Path, env: Mapping[str, str], seconds: float = 300.0) -> None:
    """Let the host be a node of a Ray cluster, with what `ray start` is told besides; its log goes to `folder`."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", "--num-cpus=2"]
    command += [f"--node-ip-address={host.address}", "--object-store-memory=100000000", *words]
    log = folder / f"{host.name}.log"
    with open(log, "w", encoding="utf-8") as out:
        process = host.popen(command, env={**env, **TOKEN}, stdout=out, stderr=subprocess.STDOUT)
    end = time.monotonic() + seconds
    while "Ray runtime started" not in log.read_text("utf-8"):
        if process.poll() is not None or time.monotonic() > end:
            raise HostsError(f"no Ray on {host.name}: {log.read_text('utf-8')}")
        time.sleep(0.05)


def start_head(host: Host, *, folder: Path, env: Mapping[str, str]) -> str:
    """Let the host be the head of a cluster; the cluster's address."""
    start_node(host, "--head", f"--port={PORT}", "--include-dashboard=false", folder=folder, env=env)
    return f"{host.address}:{PORT}"
