"""How training scales: texts a second and bytes sent for several workers and strategies, beside the prediction.

    python benchmarks/scaling.py [DATA] [--network transformer] [--workers 1,2,4] [--strategies ddp,fsdp,diloco]
    python benchmarks/scaling.py --link 50 --latency 20 --workers 1,2     # hosts with a limited link (Mbit/s, ms)

Every figure is of a whole `fastserve train` of its own that is evaluated at its end only: the mean time of a step after
the first ones, by the run's own events, in which diloco's exchanges have the share that they have in a long run. One
worker has one thread, so that the cores are what is shared. Ideal is the speed of one worker times the workers, or the
cores where these are fewer. With --link each worker is on a host of its own (a network namespace), and bytes are those
that left the hosts. Rounds are interleaved and medians are told. Needs nothing beyond FastServe; hosts need root and
iproute2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts
from fastserve import device
from link import Link

DATA = Path(__file__).resolve().parents[1] / "examples/reviews.tsv"
PORT = 29_410
SKIPPED = 5
"""Steps at the start that do not count: first touches of memory, and threads that come up."""
UNDISTURBED = 0.9
"""Share of the steps that count: the slowest had to wait for something else on the machine."""
SECONDS = 900


@dataclass(frozen=True)
class Case:
    strategy: str
    workers: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.strategy}" if self.workers > 1 else "1 worker"


@dataclass(frozen=True)
class Measured:
    """step: median seconds; sent: bytes of one worker in a step, None where nothing counted them; loss: at the end."""

    step: float
    rows: int
    sent: float | None
    loss: float


def main() -> None:
    options = arguments()
    if options.link and (reason := hosts.why_not()):
        sys.exit(f"no hosts: {reason}")
    counts = [int(word) for word in options.workers.split(",")]
    cases = [Case("ddp", 1)] * (1 in counts)
    cases += [Case(each, count) for count in counts if count > 1 for each in options.strategies.split(",")]
    found: dict[Case, list[Measured]] = {case: [] for case in cases}
    for turn in range(options.rounds):
        for case in cases:
            result = measure(case, options)
            found[case].append(result)
            print(f"round {turn + 1}: {case!s:12} {1e3 * result.step:8.1f} ms a step", flush=True)
    show(found, predicted(options, counts), options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=str(DATA))
    parser.add_argument("--network", default="transformer")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--strategies", default="ddp,fsdp,diloco")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--inner-steps", type=int, default=25, help="steps of diloco between two exchanges")
    parser.add_argument("--link", type=float, help="Mbit/s between hosts; without it all workers are on this machine")
    parser.add_argument("--latency", type=float, default=20.0, help="ms between hosts, one way")
    parser.add_argument("words", nargs="*", metavar="KEY.PATH=VALUE")
    return parser.parse_intermixed_args()


def settings(case: Case, options: argparse.Namespace) -> list[str]:
    own = f"distributed.options={{inner_steps: {options.inner_steps}}}" if case.strategy == "diloco" else ""
    return [
        f"model.network={options.network}",
        f"data.train={options.data}",
        f"train.epochs={options.epochs}",
        "train.early_stopping=0",
        "train.keep=last",
        "train.evaluate_every=1000000",
        "train.checkpoint_seconds=1000000",
        "train.threads=1",
        f"distributed.strategy={case.strategy}",
        *([own] if own else []),
        *options.words,
    ]


def measure(case: Case, options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory(prefix="fastserve-scaling-") as home:
        command = [sys.executable, "-m", "fastserve", "train", "--json", *settings(case, options)]
        environment = {"FASTSERVE_HOME": home, "OMP_WAIT_POLICY": "passive"}
        sent = None
        if options.link and case.workers > 1:
            sent = on_hosts(command, case.workers, environment, options)
        else:
            run([*command, "--workers", str(case.workers)], environment)
        period = options.inner_steps if case.strategy == "diloco" and case.workers > 1 else 1
        return read(Path(home), sent, case.workers, period)


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def on_hosts(command: list[str], count: int, environment: dict[str, str], options: argparse.Namespace) -> float:
    """Run on hosts of one worker each; bytes that left a host, on average."""
    link = Link(megabits=options.link, delay_seconds=options.latency / 1e3)
    with hosts.Hosts.start(count, link) as machines:
        meet = ["--nodes", str(count), "--rendezvous", f"{machines[0].address}:{PORT}"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = [host.popen([*command, *meet], environment, **pipes) for host in machines]
        for process in started:
            said, _ = process.communicate(timeout=SECONDS)
            if process.returncode:
                sys.exit(f"{' '.join(command)}\n{said}")
        return statistics.mean(host.bytes_sent() for host in machines)


def read(home: Path, sent: float | None, workers: int, period: int) -> Measured:
    """period: steps from one exchange to the next."""
    (path,) = home.glob("runs/*/events.jsonl")
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    rows = statistics.mode(event["rows"] for event in steps)
    pairs = list(itertools.pairwise(steps))[SKIPPED:]
    times = {b["step"]: b["time"] - a["time"] for a, b in pairs if b["rows"] == rows}
    evaluated = [event for event in events if event["event"] == "evaluation"]
    return Measured(
        usual(times, period),
        rows,
        sent / steps[-1]["step"] if sent is not None else traffic(path.parent, workers),
        evaluated[-1]["metrics"]["loss"],
    )


def usual(times: dict[int, float], period: int) -> float:
    """The mean of the undisturbed steps, where one in `period` ends with an exchange and is counted apart."""
    exchanging = [seconds for step, seconds in times.items() if step % period == 0]
    others = [seconds for step, seconds in times.items() if step % period]
    if not others:
        return undisturbed(exchanging)
    if not exchanging:
        sys.exit(f"the run has no {period} steps from one exchange to the next: more --epochs or fewer --inner-steps")
    return (undisturbed(others) * (period - 1) + statistics.median(exchanging)) / period


def undisturbed(times: list[float]) -> float:
    return statistics.mean(sorted(times)[: max(1, int(len(times) * UNDISTURBED))])


def traffic(folder: Path, workers: int) -> float | None:
    """Bytes a worker sent in a step, by its own count."""
    files = sorted(folder.glob("workers/rank-*.jsonl"))
    if workers == 1 or not files:
        return None
    last: list[dict[str, float]] = [json.loads(file.read_text("utf-8").splitlines()[-1]) for file in files]
    return statistics.mean(each["sent"] / each["step"] for each in last)


def predicted(options: argparse.Namespace, counts: list[int]) -> dict[Case, dict[str, float]]:
    """What `fastserve plan` says of the same work."""
    if not options.link:
        return plan(options, ["--workers", ",".join(map(str, counts))])
    link = ["--link", f"{options.link}Mbit", "--latency", f"{options.latency}ms", "--per-node", "1", "--cores", "1"]
    found: dict[Case, dict[str, float]] = {}
    for count in counts:  # hosts that are one machine share its cores
        share = min(1.0, device.cores() / count)
        found |= plan(options, ["--workers", str(count), "--speed", str(share), *link])
    return found


def plan(options: argparse.Namespace, words: list[str]) -> dict[Case, dict[str, float]]:
    command = [sys.executable, "-m", "fastserve", "plan", *settings(Case("diloco", 2), options), "--json", *words]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        sys.exit(done.stderr)
    plans = json.loads(done.stdout.splitlines()[-1])["plans"]
    return {Case(each["strategy"], plan["workers"]): each for plan in plans for each in plan["strategies"]}


def show(found: dict[Case, list[Measured]], plans: dict[Case, dict[str, float]], options: argparse.Namespace) -> None:
    middle = {case: statistics.median(each.step for each in results) for case, results in found.items()}
    alone = middle.get(Case("ddp", 1))
    where = f"hosts with {options.link:g} Mbit/s and {options.latency:g} ms" if options.link else "this machine"
    print(f"\n{options.network} on {where}, {device.cores()} cores, medians of {options.rounds} rounds")
    print(f"{'case':12} {'texts/s':>8} {'of ideal':>8} {'sent a step':>12} {'predicted':>10} {'off':>6} {'loss':>7}")
    for case, results in found.items():
        step, first = middle[case], results[0]
        ideal = alone and alone / min(case.workers, device.cores())
        plan = plans.get(case)
        sent = f"{first.sent / 1e6:9.3f} MB" if first.sent is not None else ""
        print(
            f"{case!s:12} {first.rows / step:8,.0f} {ideal / step if ideal else 0:8.0%} {sent:>12} "
            + (f"{first.rows / plan['step']:10,.0f} {plan['step'] / step - 1:+6.0%}" if plan else " " * 17)
            + f" {statistics.median(each.loss for each in results):7.4f}"
        )


if __name__ == "__main__":
    main()
