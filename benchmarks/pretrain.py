"""What an encoder that has read texts without labels brings a classifier that has few labelled rows.

    python benchmarks/pretrain.py [TRAIN.tsv] [DEV.tsv] [--texts 20000] [--epochs 5] [--rows 1000] [--seeds 3]

A small `transformer` learns from texts of TRAIN, whose labels it never sees (task masked). Then, for each seed, so many
rows of TRAIN are drawn with their labels, and a classifier is trained on them from random weights, one with
`model.start`, and one with the default network, all as `auto` says. A share of the rows chooses the epoch; the rows of
DEV are only judged on. Two networks are compared on the same rows and seed; the last column is the mean of the
differences with its standard error over seeds.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fastserve as fs
from fastserve.config import parse_override

DATA = Path(__file__).resolve().parents[2] / "shared/data/zh_sentiment_100k"
Row = dict[str, str]


def main() -> None:
    options = arguments()
    rows = read(Path(options.train))
    with tempfile.TemporaryDirectory(prefix="fastserve-pretrain-") as name:
        folder = Path(options.folder or name)
        os.environ["FASTSERVE_HOME"] = str(folder / "home")
        folder.mkdir(parents=True, exist_ok=True)
        start = options.start or pretrain(rows, folder, options)
        sides: dict[str, dict[str, Any]] = {
            "from random weights": {"network": "transformer", "options": shape(options)},
            "with model.start": {"start": start},
        }
        if options.reference:
            sides["default network"] = {"network": "auto"}
        found: dict[str, list[float]] = {side: [] for side in sides}
        for seed in range(options.seeds):
            labelled = write_labelled(rows, folder / f"labelled-{seed}.tsv", options.rows, seed)
            for side, model in sides.items():
                accuracy = classify(labelled, options.dev, model, seed, options)
                found[side].append(accuracy)
                print(f"seed {seed}: {side:20} {100 * accuracy:.2f} %", flush=True)
    summarize(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?", default=str(DATA / "train.tsv.gz"))
    parser.add_argument("dev", nargs="?", default=str(DATA / "dev.tsv.gz"))
    parser.add_argument("--texts", type=int, default=20_000, help="texts without labels")
    parser.add_argument("--epochs", type=int, default=5, help="of the pretraining")
    parser.add_argument("--rows", type=int, default=1_000, help="rows with labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8_000, help="of the pretraining")
    parser.add_argument("--rate", type=float, help="learning rate of the pretraining, instead of the recipe's")
    parser.add_argument("--tune", nargs="*", default=[], metavar="KEY=VALUE", help="of the classifiers' train section")
    parser.add_argument("--threads", default="auto", help="1 on a machine that is busy with something else")
    parser.add_argument("--start", help="a pretrained model, instead of training one")
    parser.add_argument("--folder", help="where data, runs and models stay; without it they are removed")
    parser.add_argument("--reference", action="store_true", help="judge the default network as well")
    return parser.parse_args()


def shape(options: argparse.Namespace) -> dict[str, int]:
    """Options of the network."""
    return {"dim": options.dim, "layers": options.layers, "heads": 4, "feedforward": 4 * options.dim}


def read(path: Path) -> list[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def pretrain(rows: list[Row], folder: Path, options: argparse.Namespace) -> str:
    """Learn from texts alone; the folder of the model."""
    path = folder / "texts.jsonl"
    chosen = random.Random(0).sample(rows, min(options.texts, len(rows)))
    path.write_text("".join(json.dumps({"text": row["text"]}, ensure_ascii=False) + "\n" for row in chosen), "utf-8")
    began = time.process_time(), time.perf_counter()
    model = fs.train(
        task="masked",
        data=str(path),
        text={"vocabulary_size": options.vocabulary},
        model={"network": "transformer", "options": shape(options)},
        epochs=options.epochs,
        threads=options.threads,
        **({} if options.rate is None else {"learning_rate": options.rate}),
    )
    figures = ", ".join(f"{name} {value:.3f}" for name, value in model.bundle.manifest.metrics.items())
    spent = f"{time.perf_counter() - began[1]:,.0f} s, {time.process_time() - began[0]:,.0f} s of processors"
    print(f"pretrained on {len(chosen):,} texts in {spent}: {figures}", flush=True)
    return str(model.bundle.folder)


def write_labelled(rows: list[Row], path: Path, count: int, seed: int) -> Path:
    chosen = random.Random(1 + seed).sample(rows, count)
    path.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in chosen), "utf-8")
    return path


def classify(train: Path, dev: str, model: dict[str, Any], seed: int, options: argparse.Namespace) -> float:
    """Accuracy on the rows of `dev`."""
    tuned = {".".join(key): value for key, value in map(parse_override, options.tune)}
    data = {"train": str(train), "test": dev}
    found = fs.train(task="classification", data=data, model=model, seed=seed, threads=options.threads, **tuned)
    return found.bundle.manifest.metrics["accuracy"]


def summarize(found: dict[str, list[float]]) -> None:
    base = next(iter(found.values()))
    print(f"\n{'accuracy on the dev rows':24} {'mean':>8} {'difference':>12}")
    for side, values in found.items():
        gaps = [100 * (value - other) for value, other in zip(values, base, strict=True)]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else float("nan")
        gap = "" if values is base else f"{statistics.mean(gaps):+8.2f} ±{error:.2f}"
        print(f"{side:24} {100 * statistics.mean(values):7.2f}% {gap:>12}")


if __name__ == "__main__":
    main()
