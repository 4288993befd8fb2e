"""What diloco loses and saves beside ddp: the loss on validation rows and the bytes sent, over several seeds.

    python benchmarks/diloco.py DATA [--seeds 3] [--workers 2] [--inner-steps 25] [KEY.PATH=VALUE]...

For each seed one `fastserve train` with either strategy and the same rows in the same order. Both are evaluated after
the same steps, which are multiples of the steps between two exchanges, so that an evaluation adds none. Compared are
the lowest loss of a run and that after its last step. Bytes are all that a worker sent from its start to its end, by
its own count: first weights and results included. Validation rows are cut from DATA. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling import run

STRATEGIES = ("ddp", "diloco")
SMALL = ("dim=128", "heads=4", "layers=2", "feedforward=256")


@dataclass(frozen=True)
class Found:
    """One run. lowest, last: validation losses; sent: bytes of one worker; steps: of the run."""

    lowest: float
    last: float
    sent: float
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--inner-steps", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("words", nargs="*", metavar="KEY.PATH=VALUE")
    options = parser.parse_intermixed_args()
    found: dict[str, list[Found]] = {strategy: [] for strategy in STRATEGIES}
    for seed in range(options.seeds):
        for strategy in STRATEGIES:
            result = train(strategy, seed, options)
            found[strategy].append(result)
            print(f"seed {seed} {strategy:7} {asdict(result)}", flush=True)
    show(found)


def train(strategy: str, seed: int, options: argparse.Namespace) -> Found:
    """A run in a home of its own."""
    inner = f"{{inner_steps: {options.inner_steps}}}"
    words = [
        "model.network=transformer",
        *(f"model.options.{each}" for each in SMALL),
        f"data.train={options.data}",
        f"train.seed={seed}",
        f"train.epochs={options.epochs}",
        f"train.evaluate_every={options.inner_steps}",
        "train.early_stopping=0",
        "train.checkpoint_seconds=1000000",
        "train.threads=1",
        f"distributed.strategy={strategy}",
        *([f"distributed.options={inner}"] if strategy == "diloco" else []),
        *options.words,
    ]
    with tempfile.TemporaryDirectory(prefix="fastserve-diloco-") as home:
        command = [sys.executable, "-m", "fastserve", "train", "--json", "--workers", str(options.workers), *words]
        run(command, {"FASTSERVE_HOME": home, "OMP_WAIT_POLICY": "passive"})
        return read(Path(home))


def read(home: Path) -> Found:
    (folder,) = home.glob("runs/*")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    losses = [event["metrics"]["loss"] for event in events if event["event"] == "evaluation"]
    workers = [json.loads(path.read_text("utf-8").splitlines()[-1]) for path in folder.glob("workers/rank-*.jsonl")]
    return Found(min(losses), losses[-1], statistics.mean(each["sent"] for each in workers), events[-1]["step"])


def show(found: dict[str, list[Found]]) -> None:
    ddp, diloco = (found[strategy] for strategy in STRATEGIES)
    fewer = [a.sent / b.sent for a, b in zip(ddp, diloco, strict=True)]
    summary: dict[str, object] = {"steps": ddp[0].steps, "seeds": len(ddp), "times_fewer_bytes": round(min(fewer), 1)}
    print(f"\n{'loss':8} {'ddp':>8} {'diloco':>8} {'diloco beside ddp':>30}")
    for name in ("lowest", "last"):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(ddp, diloco, strict=True)]
        ratios = [b / a - 1 for a, b in pairs]
        means = [statistics.mean(column) for column in zip(*pairs, strict=True)]
        error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
        print(
            f"{name:8} {means[0]:8.4f} {means[1]:8.4f} {statistics.mean(ratios):+14.1%} +- {error:.1%} (standard error)"
        )
        summary[name] = {"ddp": means[0], "diloco": means[1], "ratios": [round(each, 4) for each in ratios]}
    for strategy in STRATEGIES:
        print(f"{strategy:8} {statistics.mean(each.sent for each in found[strategy]) / 1e6:,.2f} MB sent by a worker")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
