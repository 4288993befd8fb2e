"""Start the same program as several workers, with the variables of torchrun, and wait for all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_WAIT_POLICY": "passive",
    }


def run_workers(size: int, words: Sequence[str], *, seconds: float = 120.0) -> None:
    """Run `python WORDS` in `size` workers; an AssertionError shows what a failed one said."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, *words],
            env=environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=seconds)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    failed = [f"rank {rank}:\n{said[rank]}" for rank, process in enumerate(started) if process.returncode]
    assert not failed, "\n".join(failed)
