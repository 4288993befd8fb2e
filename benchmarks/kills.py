"""Kill something of a run on several workers at a random moment, many times, and see whether every run ends well.

    python benchmarks/kills.py --times 50 --strategy ddp

Each time one of the workers, all of them, or the command itself is killed with SIGKILL, or a worker is stopped with
SIGSTOP; after the command's own death it is run again, as a person would. Every run must finish, and its weights must
be equal, bit for bit, to those of a run that was left alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "examples/reviews.tsv"
WORDS = "train.checkpoint_seconds=0 train.early_stopping=0 model.options.dropout=0 distributed.timeout_seconds=15"
VICTIMS = ("one worker", "all workers", "the command", "stop one worker")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. moment: of the kill, in seconds after the start; None where it was done before."""

    victim: str
    moment: float | None
    finished: bool
    equal: bool
    restarts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A command that is disturbed. home: of its own."""

    home: Path
    words: list[str]
    workers: int

    def start(self) -> subprocess.Popen[str]:
        said = open(self.home / "said.txt", "a", encoding="utf-8")  # noqa: SIM115 - the process has it
        environment = {**os.environ, "FASTSERVE_HOME": str(self.home), "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "fastserve", *self.words, "--json"]
        with said:
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)

    def disturb(self, process: subprocess.Popen[str], victim: str) -> bool:
        """Whether there was somebody to disturb."""
        if process.poll() is not None:
            return False
        if victim == "the command":
            process.kill()
            return True
        pids = workers_of(process.pid)
        if not pids:
            return False
        for pid in pids if victim == "all workers" else [random.choice(pids)]:
            os.kill(pid, signal.SIGSTOP if victim.startswith("stop") else signal.SIGKILL)
        return True

    def weights(self, process: subprocess.Popen[str], seconds: float) -> str | None:
        """SHA-256 of what the command trained; None where it failed or did not end."""
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return None
        if process.returncode:
            return None
        folder = Path(json.loads(out.splitlines()[-1])["folder"])
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def workers_of(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        return [int(child) for child in children if b"RANK=" in Path(f"/proc/{child}/environ").read_bytes()]
    except OSError:
        return []


def one(trial: Trial, victim: str, moment: float, expected: str, limit: float) -> Outcome:
    """Start, disturb at `moment` or as soon after as there is somebody, and wait for the end."""
    began = time.monotonic()
    process = trial.start()
    time.sleep(moment)
    while not (disturbed := trial.disturb(process, victim)) and process.poll() is None:
        time.sleep(0.05)
    at = round(time.monotonic() - began, 2)
    if disturbed and victim == "the command":
        process.communicate()
        process = trial.start()
    found = trial.weights(process, limit)
    restarts = (trial.home / "said.txt").read_text("utf-8").count("all workers start again")
    seconds = round(time.monotonic() - began, 1)
    return Outcome(victim, at if disturbed else None, found is not None, found == expected, restarts, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--network", default="textcnn")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a disturbed run may take")
    options = parser.parse_args()
    random.seed(options.seed)
    words = ["train", "--data", str(DATA), "--network", options.network, "--workers", str(options.workers)]
    words += [*WORDS.split(), f"train.epochs={options.epochs}", f"distributed.strategy={options.strategy}"]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        alone = Trial(Path(folder) / "alone", words, options.workers)
        alone.home.mkdir()
        began = time.monotonic()
        expected = alone.weights(alone.start(), options.limit)
        lasted = time.monotonic() - began
        if expected is None:
            print((alone.home / "said.txt").read_text("utf-8"), file=sys.stderr)
            return 1
        print(f"undisturbed: {lasted:.1f} s", flush=True)
        for number in range(options.times):
            trial = Trial(Path(folder) / str(number), words, options.workers)
            trial.home.mkdir()
            moment = random.uniform(0.05, 0.95) * lasted
            outcome = one(trial, random.choice(VICTIMS), moment, expected, options.limit)
            outcomes.append(outcome)
            print(json.dumps(asdict(outcome)), flush=True)
            if not (outcome.finished and outcome.equal):
                print((trial.home / "said.txt").read_text("utf-8"), file=sys.stderr)
    print(json.dumps(summary(options.strategy, options.workers, outcomes)))
    return 0 if all(outcome.finished and outcome.equal for outcome in outcomes) else 1


def summary(strategy: str, workers: int, outcomes: list[Outcome]) -> dict[str, object]:
    return {
        "strategy": strategy,
        "workers": workers,
        "runs": len(outcomes),
        "disturbed": sum(outcome.moment is not None for outcome in outcomes),
        "finished": sum(outcome.finished for outcome in outcomes),
        "equal": sum(outcome.equal for outcome in outcomes),
        "restarts": sum(outcome.restarts for outcome in outcomes),
        "victims": dict(Counter(outcome.victim for outcome in outcomes)),
    }


if __name__ == "__main__":
    sys.exit(main())
