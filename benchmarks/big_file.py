"""Peak memory while a file larger than the memory limit is read, encoded, stored and read back in random batches.

    python benchmarks/big_file.py [GIGABYTES] [--train] [--folder FOLDER]

Makes a tsv of synthetic reviews (5 GB unless told otherwise) in a temporary folder that is deleted at the end, and runs
each stage in a process of its own, whose peak memory the system counts. `--train` also runs `fastserve train` on it.
Pages of the store that are mapped into memory count in the peak of the stage "batches".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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

GIGABYTE = 1 << 30
LIMIT = 2 * GIGABYTE
_WORDS = (
    "the food was good slow cold great never again friendly staff "
    "很好 喜欢 质量 不错 太 差 了 物流 快 慢 包装 客服 态度 下次"
)


def make_file(path: Path, size: int) -> int:
    """Rows of 10 to 60 words with a label that the words decide; the number of rows."""
    generator = np.random.default_rng(0)
    words = np.array(_WORDS.split())
    rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("label\ttext\n")
        while written < size:
            block: list[str] = []
            for length in generator.integers(10, 61, 20_000).tolist():
                chosen = generator.integers(0, len(words), length)
                block.append(f"{int(chosen.sum()) % 2}\t{rows + len(block)} {' '.join(words[chosen])}\n")
            text = "".join(block)
            file.write(text)
            written += len(text.encode())
            rows += len(block)
    return rows


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
    command = [sys.executable, "-m", "fastserve", "train", "--data", str(path), "--task", "classification"]
    environment = {**os.environ, "FASTSERVE_HOME": str(folder / "home")}
    done = subprocess.run([*command, "--network", "bag", "train.epochs=1"], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"fastserve train ended with {done.returncode}")
    return -1


@dataclass(frozen=True)
class Measured:
    stage: str
    rows: int
    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        peak = f"peak {self.peak_bytes / GIGABYTE:.2f} GiB ({'under' if self.peak_bytes < LIMIT else 'OVER'} 2 GiB)"
        return f"{self.stage:8} {self.rows:>12,} rows {self.seconds:8.1f} s  {peak}"


def _run(stage: Callable[[Path, Path], int], path: Path, folder: Path, results: Any) -> None:
    start = time.monotonic()
    rows = stage(path, folder)
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    results.put((rows, time.monotonic() - start, max(usage) * 1024))


def measure(stage: Callable[[Path, Path], int], path: Path, folder: Path) -> Measured:
    """Run a stage in a fresh process; ru_maxrss is in KiB on Linux, of the largest child for its children."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_run, args=(stage, path, folder, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"stage {stage.__name__} ended with {process.exitcode}")
    return Measured(stage.__name__, *results.get())


def stages(with_training: bool) -> Iterator[Callable[[Path, Path], int]]:
    yield from (read, split, store, batches)
    if with_training:
        yield train


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("gigabytes", type=float, nargs="?", default=5.0)
    parser.add_argument("--train", action="store_true", help="also run `fastserve train` on the file")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="big_file_", dir=options.folder))
    size = int(options.gigabytes * GIGABYTE)
    if shutil.disk_usage(folder).free < 5 * size:
        folder.rmdir()
        raise SystemExit(f"{folder.parent} has too little space: a file of {size:,} bytes needs five times that")
    try:
        path = folder / "big.tsv"
        rows = make_file(path, size)
        print(f"{path.stat().st_size / GIGABYTE:.2f} GiB, {rows:,} rows", flush=True)
        measured = []
        for stage in stages(options.train):
            measured.append(measure(stage, path, folder))
            print(measured[-1], flush=True)
        print(json.dumps([vars(found) for found in measured]))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
