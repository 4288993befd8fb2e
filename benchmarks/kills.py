"""Kill something of a run on several workers at a random moment, many times, and see whether every run ends well.

    python benchmarks/kills.py --times 50 --strategy ddp

Each time one of the workers, all of them, or the command itself is killed with SIGKILL, or a worker is stopped with
SIGSTOP; after the command's own death it is run again, as a person would. While there are no workers the command is
the victim. Every run must finish, and its weights must be equal, bit for bit, to those of a run that was left alone.
A quarter of the moments are uniform over the time that this one took, most of which is the start of processes, the
others over its steps. Both are told by how far it was, so that they fall alike on a machine that is busy with something
else. In half of the runs a checkpoint is made after every step. A line for each run says where the kill fell and where
the run went on; the last line is a summary. Both are JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).resolve().parents[1] / "examples/reviews.tsv"
WORDS = (
    "train.early_stopping=0 distributed.timeout_seconds=15 "
    "model.options.dropout=0 model.options.layers=2 model.options.dim=32 model.options.heads=2 "
    "model.options.feedforward=64"
)
CHECKPOINT_SECONDS = (0.0, 0.3)
COMMAND = "the command"
VICTIMS = {"one worker": 4, COMMAND: 3, "all workers": 2, "stop one worker": 1}
"""And how often each is drawn."""
PHASES = ("preparing", "workers start", "training", "report and bundle")
TRAINING = PHASES.index("training")
IN_STEPS = 0.75
"""Share of the moments that are drawn from the steps, and not from the whole time."""
DELAY_SECONDS = 0.3
"""After the step was seen: what comes next is interrupted too."""
LOOK_SECONDS = 0.02
RESUMED = re.compile(r"resumed at step (\d+)")


class Position(NamedTuple):
    """How far a run is. phase: of PHASES; step: after which something was last written down."""

    phase: int
    step: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. phase, step: where the kill found it; writing: whether a checkpoint was half written then. resumed: the
    steps at which the run was taken up again."""

    victim: str
    phase: str
    step: int
    writing: bool
    resumed: list[int]
    finished: bool
    equal: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A command that is disturbed. home: of its own."""

    home: Path
    words: list[str]

    def start(self) -> subprocess.Popen[str]:
        said = open(self.home / "said.txt", "a", encoding="utf-8")  # noqa: SIM115 - the process has it
        environment = {**os.environ, "FASTSERVE_HOME": str(self.home), "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "fastserve", *self.words, "--json"]
        with said:
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)

    def disturb(self, process: subprocess.Popen[str], victim: str) -> str | None:
        """Who was disturbed; None where the run was over."""
        if process.poll() is not None:
            return None
        pids = workers_of(process.pid)
        if victim == COMMAND or not pids:
            process.kill()
            return COMMAND
        for pid in pids if victim == "all workers" else [random.choice(pids)]:
            os.kill(pid, signal.SIGSTOP if victim.startswith("stop") else signal.SIGKILL)
        return victim

    def position(self) -> Position:
        run = next(self.home.glob("runs/*"), None)
        if run is None or not (run / "job.json").exists():
            return Position(0, 0)
        events = written(run / "events.jsonl")
        beats = [json.loads(path.read_text("utf-8")) for path in run.glob("workers/heartbeat-*.json")]
        step = max([int(each["step"]) for each in (*events, *beats)], default=0)
        over = any(event["event"] == "finished" for event in events)
        return Position(TRAINING + 1 if over else TRAINING if step else TRAINING - 1, step)

    @property
    def writing(self) -> bool:
        return any(self.home.glob("runs/*/checkpoints/.tmp-*"))

    def watch(self, process: subprocess.Popen[str]) -> Iterator[Position]:
        """Where the run is, again and again until it ends."""
        while process.poll() is None:
            yield self.position()
            time.sleep(LOOK_SECONDS)

    def resumed(self) -> list[int]:
        return [int(step) for step in RESUMED.findall((self.home / "said.txt").read_text("utf-8"))]

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


def written(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process writes."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def workers_of(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        return [int(child) for child in children if b"RANK=" in Path(f"/proc/{child}/environ").read_bytes()]
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Reference:
    """The run that was left alone. course: when it was first seen where, in seconds; lasted: to its end."""

    weights: str
    course: list[tuple[float, Position]]
    lasted: float

    @classmethod
    def run(cls, trial: Trial, limit: float) -> Reference:
        began = time.monotonic()
        process = trial.start()
        course: list[tuple[float, Position]] = []
        for position in trial.watch(process):
            if not course or position != course[-1][1]:
                course.append((time.monotonic() - began, position))
        lasted = time.monotonic() - began
        weights = trial.weights(process, limit)
        if weights is None:
            sys.exit((trial.home / "said.txt").read_text("utf-8"))
        return cls(weights, course, lasted)

    def moment(self) -> tuple[Position, float]:
        """A random one: seconds after the run was first seen at that position, or further."""
        if random.random() < IN_STEPS:
            last = max(position.step for _, position in self.course)
            return Position(TRAINING, random.randrange(last)), random.uniform(0.0, DELAY_SECONDS)
        at = random.uniform(self.course[0][0], self.lasted)
        since, position = [each for each in self.course if each[0] <= at][-1]
        return position, at - since


def one(trial: Trial, victim: str, reference: Reference, limit: float) -> Outcome:
    """Start, disturb at a random moment, and wait for the end."""
    began = time.monotonic()
    position, after = reference.moment()
    process = trial.start()
    next((True for seen in trial.watch(process) if seen >= position), None)
    time.sleep(after)
    seen, writing = trial.position(), trial.writing
    disturbed = trial.disturb(process, victim)
    if disturbed == COMMAND:
        process.communicate()
        process = trial.start()
    found = trial.weights(process, limit)
    return Outcome(
        victim=disturbed or "nobody",
        phase=PHASES[seen.phase],
        step=seen.step,
        writing=writing,
        resumed=trial.resumed(),
        finished=found is not None,
        equal=found == reference.weights,
        seconds=round(time.monotonic() - began, 1),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--network", default="transformer")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a disturbed run may take")
    options = parser.parse_args()
    random.seed(options.seed)
    words = ["train", "--data", str(DATA), "--network", options.network, "--workers", str(options.workers)]
    words += [*WORDS.split(), f"train.epochs={options.epochs}", f"distributed.strategy={options.strategy}"]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        alone = Trial(Path(folder) / "alone", words)
        alone.home.mkdir()
        reference = Reference.run(alone, options.limit)
        print(f"undisturbed: {reference.lasted:.1f} s, {len(reference.course)} positions seen", flush=True)
        for number in range(options.times):
            seconds = random.choice(CHECKPOINT_SECONDS)
            trial = Trial(Path(folder) / str(number), [*words, f"train.checkpoint_seconds={seconds}"])
            trial.home.mkdir()
            (victim,) = random.choices(list(VICTIMS), list(VICTIMS.values()))
            outcome = one(trial, victim, reference, options.limit)
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
        "disturbed": sum(outcome.victim != "nobody" for outcome in outcomes),
        "finished": sum(outcome.finished for outcome in outcomes),
        "equal": sum(outcome.equal for outcome in outcomes),
        "victims": dict(Counter(outcome.victim for outcome in outcomes)),
        "phases": dict(Counter(outcome.phase for outcome in outcomes)),
    }


if __name__ == "__main__":
    sys.exit(main())
