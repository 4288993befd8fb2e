"""What the cost model says of an exchange, beside that exchange between hosts with a slow link."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastserve.distributed import cost
from fastserve.distributed.cost import Cluster
from hosts import Hosts
from link import Link

MEMBER = str(Path(__file__).with_name("exchange_member.py"))
MEGABITS, MILLISECONDS = 50, 20


@pytest.mark.heavy
def test_exchanges_last_as_long_as_the_model_says(make_hosts: Callable[..., Hosts]) -> None:
    hosts = make_hosts(2, Link(megabits=MEGABITS, delay_seconds=MILLISECONDS / 1e3))
    started = [
        host.popen([sys.executable, MEMBER], variables(rank, hosts), stdout=subprocess.PIPE, text=True)
        for rank, host in enumerate(hosts)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    link = cost.Link.parse(f"{MEGABITS}Mbit", f"{MILLISECONDS}ms")
    cluster = Cluster(len(hosts), 1, 1, link, link)
    for size, times in json.loads(said[0]).items():
        for name, seconds in times.items():
            assert getattr(cost, name)(float(size), cluster).seconds == pytest.approx(seconds, rel=0.2), (name, size)


def variables(rank: int, hosts: Hosts) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(hosts)),
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": "29412",
        "GLOO_SOCKET_IFNAME": "eth0",
    }
