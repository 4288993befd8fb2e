"""Scheduling policies on recorded traces and a heavy-tailed mix, by the engine's scheduler on a virtual clock.

    python benchmarks/schedule.py [TRACE...] [--loads 0.5,0.7,0.9,1.1] [--slots 16,64,256] [--requests 4000]
                                  [--policies fcfs,...] [--profile FILE] [--part last|first] [--processes 1]

TRACE is a file as `fastserve simulate` reads it. Parameters were chosen on the first half of each trace; the last half
is reported, `--requests` of it. The last line is JSON: a list of runs. Against fcfs: how many times lower the mean
completion is, p99 completion, seconds of steps for the same work (throughput), and mean completion of the longest
tenth of the requests, which is what the gain costs. `schedule_engine.py` measures profiles, and how far a real engine
is from what is foretold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastserve.generation.figures import figures
from fastserve.generation.job import Job
from fastserve.generation.limits import Guards, Limits
from fastserve.generation.outlook import Outlook
from fastserve.generation.policies.base import Plain
from fastserve.generation.simulator import Outcome, capacity_seconds, simulate
from fastserve.generation.step_cost import SMALL_DECODER, StepCost
from fastserve.generation.traces import Request, heavy_tailed, read_trace, scaled

POLICIES = "fcfs,sj-mlfq,hrrn,boost,oracle"
"""`priority` is fcfs where a trace has no priorities. `oracle` is no policy but a bound (see Oracle)."""
WAIT = 3600.0
"""Seconds of the guard against waiting: a trace at load 1.1 queues for longer than a server would let it."""
Task = tuple[str, list[Request], int, list[float], list[str], StepCost]


class Oracle(Plain):
    """Shortest remaining work first, told how much each request will write: about the least mean that can be had."""

    preempts = True

    def __init__(self, outlook: Outlook, outputs: Sequence[int]) -> None:
        super().__init__(outlook)
        self.outputs = outputs
        self._token = outlook.cost.share(outlook.batch)

    def arrive(self, job: Job, cached: int, now: float) -> None:
        left = self.outputs[job.id] - job.written
        job.rank = self.outlook.cost.read(job.unread - cached) + left * self._token

    def charge(self, job: Job, seconds: float, now: float) -> None:
        self.arrive(job, 0, now)

    def steady(self, job: Job, seconds: float) -> int:
        return 0


def part_of(requests: Sequence[Request], part: str, count: int) -> list[Request]:
    """The first or the last half, at most `count` of it about its middle, from 0 on."""
    half = len(requests) // 2
    found = list(requests[:half] if part == "first" else requests[half:])
    if len(found) > count:
        start = (len(found) - count) // 2
        found = found[start : start + count]
    return [replace(request, arrival=request.arrival - found[0].arrival) for request in found]


def run(task: Task) -> list[dict[str, Any]]:
    """All loads and policies of one trace and number of slots."""
    name, requests, slots, loads, policies, cost = task
    limits = Limits(slots=slots, rows=2 * slots, blocks=max(256 * slots, 4096), guards=replace(Guards(), wait=WAIT))
    seconds = capacity_seconds(requests, limits, cost)
    rows = []
    for load in loads:
        arriving = scaled(requests, seconds / load)
        for policy in policies:
            started = time.perf_counter()
            found = figures(judge(arriving, policy, limits, cost))
            took = time.perf_counter() - started
            rows.append({"trace": name, "slots": slots, "load": load, "policy": policy, "took": took, **found})
            print(line(rows[-1], rows[-1 - policies.index(policy)]), file=sys.stderr, flush=True)
    return rows


def judge(requests: Sequence[Request], policy: str, limits: Limits, cost: StepCost) -> Outcome:
    if policy == "oracle":
        outputs = [request.output for request in requests]
        return simulate(requests, f"{Path(__file__).stem}:Oracle", limits, cost, outputs=outputs)
    return simulate(requests, policy, limits, cost)


HEADINGS = (
    "trace         slots load policy      first token s: mean   p50    p99 | completion s: mean     p50      p99 "
    "| slowdown: mean   p99 | short mean  long mean | preempt. recomputed "
    "| mean better  p99 ratio  work ratio  long ratio"
)


def line(row: dict[str, Any], first: dict[str, Any]) -> str:
    """A run as a row of the table, beside the first policy's at the same load."""
    every, base = row["all"], first["all"]
    spread = [every[name][figure] for name in ("first", "completion") for figure in ("mean", "p50", "p99")]
    ratio = every["completion"]["mean"] / base["completion"]["mean"]
    return (
        f"{row['trace']:13} {row['slots']:5} {row['load']:4} {row['policy']:10}"
        f"{spread[0]:20.1f} {spread[1]:6.1f} {spread[2]:6.1f} |{spread[3]:19.1f} {spread[4]:8.1f} {spread[5]:8.1f} |"
        f"{every['slowdown']['mean']:15.1f} {every['slowdown']['p99']:6.1f} |"
        f"{row['short']['completion']['mean']:11.1f} {row['long']['completion']['mean']:10.1f} |"
        f"{row['preemptions']:9,} {row['recomputed_tokens']:10,} |"
        f"{1 / ratio:11.2f}x {spread[5] / base['completion']['p99']:10.2f}"
        f"{row['busy_seconds'] / first['busy_seconds']:12.3f}"
        f"{row['long']['completion']['mean'] / first['long']['completion']['mean']:12.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", metavar="TRACE")
    parser.add_argument("--loads", default="0.5,0.7,0.9,1.1")
    parser.add_argument("--slots", default="16,64,256")
    parser.add_argument("--policies", default=POLICIES, help="The others are compared with the first.")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--part", choices=("first", "last"), default="last")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    cost = StepCost.read_file(given.profile) if given.profile else SMALL_DECODER
    found = {Path(trace).name.partition(".")[0]: read_trace(trace) for trace in given.traces}
    found["heavy-tailed"] = heavy_tailed(2 * given.requests, seed=0)
    loads, slots = [float(load) for load in given.loads.split(",")], [int(one) for one in given.slots.split(",")]
    tasks: list[Task] = [
        (name, part_of(requests, given.part, given.requests), number, loads, given.policies.split(","), cost)
        for number in slots
        for name, requests in found.items()
    ]
    print(HEADINGS, file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        rows = [row for part in pool.imap(run, tasks, chunksize=1) for row in part]
    print(HEADINGS)
    for index, row in enumerate(rows):
        print(line(row, rows[index - given.policies.split(",").index(row["policy"])]))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
