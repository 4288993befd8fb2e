"""Peak memory while a file larger than the memory limit is read, encoded, stored, read back and trained on.

    python benchmarks/big_file.py [GIGABYTES] [--train | --train-only] [--folder FOLDER]

Makes a tsv of synthetic reviews (5 GB, 25 million rows, unless told otherwise) in a temporary folder that is deleted at
the end, and runs each stage in a process of its own. `--train` also runs `fastserve train` on it, for one epoch.

The peak is that of the process and all its children together: anonymous memory (heaps, stacks, shared memory), which
is judged by the limit, and apart from it pages of mapped files, which are the system's cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.config import DataConfig
from fastserve.data.batches import BatchPlan
from fastserve.data.blocks import Block
from fastserve.data.dataset import open_dataset
from fastserve.data.split import load_splits
from fastserve.data.store import Store, write_store
from fastserve.types import Ragged
from tree_memory import Peak

GIGABYTE = 1 << 30
LIMIT = 2 * GIGABYTE
_WORDS = (
    "the food was good slow cold great never again friendly staff "
    "很好 喜欢 质量 不错 太 差 了 物流 快 慢 包装 客服 态度 下次"
)
_BLOCK = 20_000
SPACE, TRAINING_SPACE = 5, 11
"""Times the size of the file that must be free on the disk: a text of n bytes has about n n-grams of 8 bytes each."""


def make_file(path: Path, size: int) -> int:
    """Rows of 10 to 60 words, labelled by whether more than a third of them are certain ones; the number of rows."""
    generator = np.random.default_rng(0)
    rows = written = 0
    with path.open("wb") as file:
        file.write(b"label\ttext\n")
        while written < size:
            block = _block(generator, rows)
            written += file.write(block)
            rows += _BLOCK
    return rows


def _block(generator: np.random.Generator, first: int) -> bytes:
    words = [f" {word}" for word in _WORDS.split()]
    lengths = generator.integers(10, 61, _BLOCK)
    chosen = generator.integers(0, len(words), int(lengths.sum()))
    ends = np.cumsum(lengths)
    liked = np.add.reduceat(chosen % 3 == 0, ends - lengths, dtype=np.int64)
    labels = (3 * liked > lengths).astype(int).tolist()
    texts = [words[index] for index in chosen.tolist()]
    starts = (ends - lengths).tolist()
    rows = zip(range(first, first + _BLOCK), labels, starts, ends.tolist(), strict=True)
    return "".join(f"{label}\t{row}{''.join(texts[start:end])}\n" for row, label, start, end in rows).encode()


def encode(block: Block) -> Ragged:
    """Characters as numbers: the plainest encoder, to measure what surrounds one."""
    codes = np.frombuffer("".join(block.texts).encode("utf-32-le"), np.int32)
    offsets = np.zeros(len(block) + 1, np.int64)
    np.cumsum([len(text) for text in block.texts], out=offsets[1:])
    return Ragged(codes, offsets)


def read(path: Path, folder: Path) -> int:
    return sum(len(block) for block in open_dataset(str(path)).blocks())


def split(path: Path, folder: Path) -> int:
    splits = load_splits(DataConfig(train=str(path)), seed=0)
    return len(splits.train) + len(splits.validation or ())


def store(path: Path, folder: Path) -> int:
    rows = 0
    with write_store(folder / "store") as writer:
        for block in open_dataset(str(path)).blocks():
            targets = np.array([int(labels[0]) for labels in block.labels], np.int64)
            writer.append({"tokens": encode(block)}, targets, block.rows)
            rows += len(block)
    return rows


def batches(path: Path, folder: Path) -> int:
    """An epoch of random batches, or as much of it as passes in a minute."""
    whole = Store.open(folder / "store")
    rows, deadline = 0, time.monotonic() + 60
    for chosen in BatchPlan(whole.lengths("tokens"), 256, seed=0).epoch(0):
        rows += len(whole.batch(chosen))
        if time.monotonic() > deadline:
            break
    return rows


def train(path: Path, folder: Path) -> int:
    shutil.rmtree(folder / "store", ignore_errors=True)
    command = [sys.executable, "-m", "fastserve", "train", "--data", str(path), "--task", "classification"]
    environment = {**os.environ, "FASTSERVE_HOME": str(folder / "home")}
    done = subprocess.run([*command, "--network", "bag", "train.epochs=1"], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"fastserve train ended with {done.returncode}")
    (prepared,) = (folder / "home" / "runs").glob("*/data/prepared.json")
    return int(json.loads(prepared.read_text("utf-8"))["faults"]["rows"]["train"])


@dataclass(frozen=True)
class Measured:
    """Peaks in bytes, of the whole tree of processes; total: of both kinds at one moment."""

    stage: str
    rows: int
    seconds: float
    anonymous: int
    mapped: int
    total: int

    def __str__(self) -> str:
        verdict = "under" if self.anonymous < LIMIT else "OVER"
        sizes = [f"{size / GIGABYTE:.2f} GiB" for size in (self.anonymous, self.mapped, self.total)]
        return (
            f"{self.stage:8} {self.rows:>12,} rows {self.seconds:8.1f} s  "
            f"peak {sizes[0]} of its own ({verdict} 2 GiB), {sizes[1]} of mapped files, {sizes[2]} together"
        )


def _run(stage: Callable[[Path, Path], int], path: Path, folder: Path, results: Any) -> None:
    start = time.monotonic()
    rows = stage(path, folder)
    results.put((rows, time.monotonic() - start))


def measure(stage: Callable[[Path, Path], int], path: Path, folder: Path) -> Measured:
    """Run a stage in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_run, args=(stage, path, folder, results))
    process.start()
    if process.pid is None:
        raise SystemExit(f"stage {stage.__name__} did not start")
    with Peak(process.pid) as peak:
        process.join()
    if process.exitcode:
        raise SystemExit(f"stage {stage.__name__} ended with {process.exitcode}")
    rows, seconds = results.get()
    return Measured(stage.__name__, rows, seconds, peak.anonymous, peak.mapped, peak.total)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("gigabytes", type=float, nargs="?", default=5.0)
    parser.add_argument("--train", action="store_true", help="also run `fastserve train` on the file")
    parser.add_argument("--train-only", action="store_true", help="run nothing else on it")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    stages: list[Callable[[Path, Path], int]] = [] if options.train_only else [read, split, store, batches]
    if options.train or options.train_only:
        stages.append(train)
    folder = Path(tempfile.mkdtemp(prefix="big_file_", dir=options.folder))
    size = int(options.gigabytes * GIGABYTE)
    needed = (TRAINING_SPACE if train in stages else SPACE) * size
    if shutil.disk_usage(folder).free < needed:
        folder.rmdir()
        raise SystemExit(f"{folder.parent} has too little space: a file of {size:,} bytes needs {needed:,}")
    try:
        run(stages, folder, size)
    finally:
        shutil.rmtree(folder)


def run(stages: list[Callable[[Path, Path], int]], folder: Path, size: int) -> None:
    path = folder / "big.tsv"
    rows = make_file(path, size)
    print(f"{path.stat().st_size / GIGABYTE:.2f} GiB, {rows:,} rows", flush=True)
    measured = []
    for stage in stages:
        measured.append(measure(stage, path, folder))
        print(measured[-1], flush=True)
    print(json.dumps([vars(found) for found in measured]))


if __name__ == "__main__":
    main()
