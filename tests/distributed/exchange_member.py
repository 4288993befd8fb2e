"""One of several workers that time single exchanges: run by test_exchanges.py, on a host each.

python exchange_member.py, with the variables of torchrun in the environment: the first prints JSON, the seconds of each
exchange by its name and its bytes.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

SIZES = (4 << 10, 1 << 20, 4 << 20)
"""Bytes of float32."""
TIMES = 3


def median_seconds(exchange: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMES):
        dist.barrier()
        start = time.perf_counter()
        exchange()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of names that newer versions of torch have another one for
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    workers, found = dist.get_world_size(), {}
    for size in SIZES:
        whole = torch.ones(size // 4)
        part = torch.ones(size // 4 // workers)
        found[size] = {
            "all_reduce": median_seconds(lambda whole=whole: dist.all_reduce(whole)),
            "all_gather": median_seconds(lambda w=whole, p=part: dist.all_gather_into_tensor(w, p)),
            "reduce_scatter": median_seconds(lambda w=whole, p=part: dist.reduce_scatter_tensor(p, w)),
        }
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
