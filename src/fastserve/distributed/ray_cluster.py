"""A Ray to work in: one of our own for the time of a command, or a cluster that this machine is part of."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from fastserve import config, device
from fastserve.errors import WorkError

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to its makers
    "RAY_worker_niceness": "0",  # 15 by itself: beside any other work the processes would starve
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables of every Ray that is started here; what the user has set stays."""
PASSED = ("PYTHONPATH", "OMP_WAIT_POLICY")
"""Environment variables that workers get from the command, as they would on its machine."""
OBJECT_BYTES = 128 << 20
"""Of shared memory, for a Ray of our own: no data goes through it."""
OWN = "local"
CONNECT_SECONDS = 5.0


def meant(address: str | None) -> str:
    """The address that a user's words mean; OWN where they and $RAY_ADDRESS say none."""
    return address or os.environ.get("RAY_ADDRESS") or OWN


@contextlib.contextmanager
def attached(address: str, cpus: int, failure: type[WorkError]) -> Iterator[bool]:
    """Within a Ray: that which the program is in already (False), or else that at `address` for the time of the work.

    cpus: that one of our own has at least, whatever this machine has. `failure` is raised where there is no Ray.
    """
    if ray.is_initialized():
        yield False
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    own: dict[str, Any] = {}
    if address == OWN:
        own = {"num_cpus": max(device.cores(), cpus), "object_store_memory": OBJECT_BYTES}
    try:
        _reach(address)
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, OverflowError, RuntimeError, ValueError, RayError) as error:
        raise failure(
            f"no Ray at '{address}': {first_line(error)}. Expected ray:HOST:PORT of a cluster that this "
            "machine is part of (ray start --address=HOST:PORT), ray:auto, or ray alone. A cluster that demands a "
            "token gets it where RAY_AUTH_MODE=token"
        ) from error
    try:
        yield True
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def variables(address: str) -> dict[str, str]:
    """What processes of a cluster are given of the environment; of our own Ray they inherit it, and start sooner so."""
    if address == OWN:
        return {}
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {**passed, "FASTSERVE_HOME": str(config.home())}


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
