"""Whether the simulator foretells the engine: the same requests, in real time and on the virtual clock.

    python benchmarks/schedule_engine.py [TRACE...] [--loads 0.9] [--policies fcfs,boost] [--seconds 70] [--rounds 3]
                                         [--slots 16] [--no-mix] [--profile FILE] [--results FILE]

A decoder of 15.7 M random weights writes on all cores. Requests come by the clock, and as many tokens are written for
each as the trace says; policies are told no more than what a request may write, here and there. How long steps take on
the virtual clock is measured during the run, every second or so, while the run's clock stands still, and so is how the
machine becomes faster and slower: by a fifth within seconds, where others use it as well. How fast requests come, so
that it is the load and takes about --seconds, is told by what was measured so during a run of --before seconds just
before; the policy weighs by that, too.
--profile keeps that of the last run as `fastserve simulate --profile` reads it.

The mix is `heavy_tailed`; of TRACE, a file as `fastserve simulate` reads it, the last half, its lengths divided by 8 so
that they fit into the network's context. Each row of the table is one figure: medians over the rounds, and how far the
simulator was off in each. --results collects runs as lines of JSON over several calls; the table shows all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastserve.errors import Overloaded
from fastserve.generation.engine import Engine
from fastserve.generation.figures import figures
from fastserve.generation.job import Job
from fastserve.generation.limits import Limits
from fastserve.generation.orders import EngineOptions, Order
from fastserve.generation.profile import Measuring, profile
from fastserve.generation.runner import Runner
from fastserve.generation.sampling import Sampling
from fastserve.generation.scheduler import Scheduler
from fastserve.generation.setup import Setup
from fastserve.generation.simulator import Outcome, Simulation, alone, capacity_seconds
from fastserve.generation.step_cost import StepCost
from fastserve.generation.text import Blocks
from fastserve.generation.traces import Request, heavy_tailed, read_trace, scaled
from fastserve.generation.writing import Writing
from fastserve.models.decoder import Decoder, DecoderOptions
from fastserve.models.network import NetworkShape

LAYERS, DIM, CONTEXT, VOCABULARY = 8, 384, 1_024, 8_192
"""Of a decoder of 15.7 M weights."""
SHORTER = 8
"""What lengths of a recorded trace are divided by."""
TOKENS = ("prompt_token", "cached_token", "swapped_token", "prompt_pair", "prompt_start")
WINDOW = 2.5
"""Seconds before and after a moment by which it is judged how fast the machine was."""
SOME = 600
"""Requests by which it is judged how many the machine serves."""


# The engine in real time


class Told(Engine):
    """An engine whose policy is told what a request may write, while its order says where the text ends.

    hints: of each order.
    """

    hints: Mapping[str, int]

    def _job(self, order: Order, writing: Writing, blocks: Blocks, follows: int | None) -> Job:
        job = super()._job(order, writing, blocks, follows)
        job.max_tokens = self.hints[order.id]
        return job


def orders_of(requests: Sequence[Request], vocabulary: int) -> list[Order]:
    """Random prompts of the right lengths; texts end by `max_tokens` alone."""
    draws = np.random.default_rng(0)
    return [
        Order(
            str(number),
            draws.integers(0, vocabulary, request.prompt).tolist(),
            Sampling(max_tokens=request.output),
            request.priority,
            request.key,
        )
        for number, request in enumerate(requests)
    ]


def drive(
    engine: Told,
    requests: Sequence[Request],
    vocabulary: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    between: Callable[[], None] = lambda: None,
) -> Outcome:
    """What the engine makes of the requests, which come by its clock. between: what is done after each step."""
    orders = orders_of(requests, vocabulary)
    engine.hints = {order.id: request.max_tokens for order, request in zip(orders, requests, strict=True)}
    first, end = np.full((2, len(requests)), np.nan)
    begun, added, busy, now = engine.clock(), 0, 0.0, 0.0
    while added < len(requests) or engine.has_work:
        while added < len(requests) and requests[added].arrival <= now:
            added += 1
            with suppress(Overloaded):
                engine.add(orders[added - 1])
        started, outputs = engine.clock(), []
        if engine.has_work:
            outputs = engine.step()
            busy += engine.clock() - started
        elif added < len(requests):
            sleep(max(requests[added].arrival - (started - begun), 0.0))
        now = engine.clock() - begun
        for output in outputs:
            number = int(output.id)
            first[number] = now if np.isnan(first[number]) else first[number]
            end[number] = now if output.ends else np.nan
        between()
        now = engine.clock() - begun
    return _outcome(engine, requests, first, end, now, busy)


def _outcome(
    engine: Engine, requests: Sequence[Request], first: np.ndarray, end: np.ndarray, seconds: float, busy: float
) -> Outcome:
    scheduler = engine.scheduler
    arrivals = np.array([request.arrival for request in requests])
    lonely = [alone(request, scheduler.outlook.cost, scheduler.limits) for request in requests]
    preemptions = np.zeros(len(requests), np.int64)
    tokens = sum(request.prompt + request.output for request in requests)
    return Outcome(
        first - arrivals, end - arrivals, np.array(lonely), preemptions, scheduler.counts, seconds, busy, tokens
    )


# Both, side by side


class Clock:
    """Seconds of a run, without those in which it is paused so that steps can be measured, about a fifth."""

    def __init__(self, measuring: Measuring) -> None:
        self._measuring, self._paused, self._next = measuring, 0.0, 0.0
        self._turns: list[tuple[float, float]] = []
        """When something was measured, and how long that took."""

    def __call__(self) -> float:
        return time.monotonic() - self._paused

    def pause(self) -> None:
        """Measure for a moment, if enough of the run has gone by."""
        begun = time.monotonic()
        if self() >= self._next:
            self._measuring.turn()
            took = time.monotonic() - begun
            self._turns.append((self() - took, took))
            self._paused += took
            self._next = self() + 4 * took

    def slowness(self) -> list[float]:
        """Of each second of the run: how much longer everything took about then than on average."""
        times, took = np.array(self._turns).T
        times = times - times[0]
        near = (took[np.abs(times - second) <= WINDOW] for second in range(int(times[-1]) + 1))
        return [float(some.mean() / took.mean()) if len(some) else 1.0 for some in near]


class Drifting(Simulation):
    """The virtual clock of a machine whose speed is not always the same. slowness: in each second."""

    def __init__(
        self, requests: Sequence[Request], scheduler: Scheduler, cost: StepCost, slowness: Sequence[float]
    ) -> None:
        super().__init__(requests, scheduler, cost)
        self._costs = [slower(cost, factor) for factor in slowness]

    def advance(self) -> None:
        self.cost = self._costs[min(int(self.now), len(self._costs) - 1)]
        super().advance()


def slower(cost: StepCost, factor: float) -> StepCost:
    """Everything takes so many times as long."""
    each = {name: factor * getattr(cost, name) for name in TOKENS}
    return replace(cost, seconds=tuple(factor * seconds for seconds in cost.seconds), **each)


class Machine:
    """A network, and a bench on which its steps are measured."""

    def __init__(self, slots: int) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        options = DecoderOptions(layers=LAYERS, dim=DIM, context=CONTEXT)
        self.network = Decoder(options, NetworkShape({"tokens": VOCABULARY}, VOCABULARY)).eval().requires_grad_(False)
        self.options = EngineOptions(
            slots=slots,
            rows=2 * slots,
            prefix_cache=False,
            speculation=0,
            profile_seconds=0,
            max_waiting_tokens=1 << 40,
        )
        setup = Setup(self.network, self.options, {})
        self.limits, self._runner = setup.limits(), Runner(setup.fast, slots)

    def measuring(self) -> Measuring:
        return Measuring(self._runner, self.limits.slots)

    def profile(self, seconds: float) -> StepCost:
        return profile(self._runner, self.limits.slots, seconds=seconds)

    def engine(self, policy: str, cost: StepCost, clock: Clock) -> Told:
        engine = Told(self.network, None, self.options, clock=clock)
        engine.scheduler = Scheduler.create(policy, self.limits, cost)
        engine.prepare()
        return engine

    def compare(self, requests: Sequence[Request], policy: str, cost: StepCost) -> tuple[Outcome, Outcome, StepCost]:
        """The requests on the virtual clock and in real time. cost: what the scheduler weighs by; steps take what was
        measured during the run."""
        measuring = self.measuring()
        clock = Clock(measuring)
        real = drive(self.engine(policy, cost, clock), requests, VOCABULARY, between=clock.pause)
        found = measuring.cost()
        scheduler = Scheduler.create(policy, self.limits, cost)
        return Drifting(requests, scheduler, found, clock.slowness()).run(), real, found


def arriving(requests: Sequence[Request], load: float, seconds: float, limits: Limits, cost: StepCost) -> list[Request]:
    """As many of the requests as take so many seconds at the load."""
    some = requests[:SOME]
    count = round(len(some) * load * seconds / capacity_seconds(some, limits, cost))
    found = [replace(request, arrival=request.arrival - requests[0].arrival) for request in requests[:count]]
    return scaled(found, capacity_seconds(found, limits, cost) / load)


def shortened(requests: Sequence[Request]) -> list[Request]:
    """The last half, its lengths divided so that they fit."""
    return [
        replace(
            request,
            prompt=min(max(request.prompt // SHORTER, 1), CONTEXT // 2),
            output=min(max(request.output // SHORTER, 1), CONTEXT // 4),
            max_tokens=CONTEXT // 4,
        )
        for request in requests[len(requests) // 2 :]
    ]


# The table


def row_of(name: str, load: float, policy: str, simulated: Outcome, real: Outcome) -> dict[str, Any]:
    both = {}
    for kind, outcome in (("simulated", simulated), ("real", real)):
        found = figures(outcome)
        both[kind] = {
            "first token, mean": found["all"]["first"]["mean"],
            "completion, mean": found["all"]["completion"]["mean"],
            "completion, p99": found["all"]["completion"]["p99"],
            "seconds of steps": found["busy_seconds"],
            "preemptions": found["preemptions"],
        }
    return {"trace": name, "load": load, "policy": policy, "requests": len(real.first), **both}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the rounds, and by how much the simulator was off in each."""
    found = defaultdict(list)
    for row in rows:
        found[row["trace"], row["load"], row["policy"]].append(row)
    lines = [
        "| trace | load | policy | rounds | figure | simulated | real | off | in each round |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, load, policy), group in found.items():
        for figure in group[0]["real"]:
            simulated, real = (statistics.median(run[kind][figure] for run in group) for kind in ("simulated", "real"))
            off = [run["simulated"][figure] / run["real"][figure] - 1 for run in group if run["real"][figure]]
            each = " ".join(f"{one:+.0%}" for one in off)
            lines.append(
                f"| {name} | {load} | {policy} | {len(group)} | {figure} | {simulated:,.3f} | {real:,.3f} "
                f"| {f'{statistics.median(off):+.1%}' if off else ''} | {each} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", metavar="TRACE")
    parser.add_argument("--loads", default="0.9")
    parser.add_argument("--policies", default="fcfs,boost")
    parser.add_argument("--seconds", type=float, default=70.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--mix", action=argparse.BooleanOptionalAction, default=True, help="the heavy-tailed one")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--before", type=float, default=12.0)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    found = {Path(trace).name.partition(".")[0]: shortened(read_trace(trace)) for trace in given.traces}
    if given.mix:
        found["heavy-tailed"] = heavy_tailed(4 * SOME, seed=1, most=CONTEXT // 2)
    rows = collected(given.results)
    for row, measured in runs(given, found):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if given.results is not None:
            given.results.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        if given.profile is not None:
            given.profile.write_text(json.dumps(measured.to_json()), "utf-8")
    print(table(rows))


def collected(results: Path | None) -> list[dict[str, Any]]:
    if results is None or not results.exists():
        return []
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()]


def runs(
    given: argparse.Namespace, traces: Mapping[str, Sequence[Request]]
) -> Iterator[tuple[dict[str, Any], StepCost]]:
    """All of them, in turns, each with what was measured during it."""
    machine = Machine(given.slots)
    loads, policies = [float(load) for load in given.loads.split(",")], given.policies.split(",")
    for _ in range(given.rounds):
        for name, load, policy in itertools.product(traces, loads, policies):
            rough = machine.profile(2.0)
            few = arriving(traces[name], load, given.before, machine.limits, rough)
            _, _, cost = machine.compare(few, policy, rough)
            requests = arriving(traces[name], load, given.seconds, machine.limits, cost)
            simulated, real, measured = machine.compare(requests, policy, cost)
            yield row_of(name, load, policy, simulated, real), measured


if __name__ == "__main__":
    main()
