"""What an exchange between two processes of this machine costs: measured, since no data sheet says it.

`python -m fastserve.distributed.probe RANK PORT` is one of the two.
"""

from __future__ import annotations

import functools
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from fastserve.distributed.cost import HANDSHAKE, Link
from fastserve.errors import TrainingError

SMALL, LARGE = 1 << 10, 4 << 20
"""Numbers (4 bytes each) in the exchanges whose time is latency, and bandwidth."""
TIMES = 31
SECONDS = 60


def measure_inside() -> Link:
    """The link between two workers of this machine. TrainingError where they do not reach each other."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "fastserve.distributed.probe", str(rank), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        (out, said), _ = (process.communicate(timeout=SECONDS) for process in pair)
    except subprocess.TimeoutExpired:
        raise TrainingError(f"two workers of this machine did not meet within {SECONDS} s") from None
    finally:
        for process in pair:
            process.kill()
            process.wait()
    if pair[0].returncode:
        raise TrainingError(f"two workers of this machine cannot exchange: {said.strip().splitlines()[-1:]}")
    found = json.loads(out)
    return Link(found["bandwidth"], found["latency"], found["gathering"])


def main(rank: int, port: int) -> None:
    """Exchange with the other one; the first prints what it found.

    An all-reduce of two is two messages each way, and each has half of what is summed. An all-gather is one, and each
    has half of what is put together.
    """
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, 2, rank == 0, timeout=timedelta(seconds=SECONDS))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS))
    small, large = (_median_seconds(dist.all_reduce, torch.ones(size)) for size in (SMALL, LARGE))
    whole, own = torch.empty(LARGE), torch.ones(LARGE // 2)
    gathered = _median_seconds(
        functools.partial(DefaultAllGather(), group=dist.distributed_c10d._get_default_group()), whole, own
    )
    if rank == 0:
        latency, second = small / 2 / HANDSHAKE, max(large - small, 1e-9)  # for the bytes that either sends
        longer = max((gathered - HANDSHAKE * latency) / (second / 2), 1.0)
        print(json.dumps({"latency": latency, "bandwidth": 4 * LARGE / second, "gathering": longer}))
    dist.barrier()
    dist.destroy_process_group()


def _median_seconds(exchange: Callable[..., object], *tensors: object) -> float:
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        exchange(*tensors)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
