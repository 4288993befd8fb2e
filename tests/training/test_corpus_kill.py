"""A process that is killed while it encodes a corpus: the next one goes on behind the shards that are whole."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastserve import config
from fastserve.data.shards import Shards
from fastserve.training import corpus
from fastserve.training.generation import prepare
from fastserve.types import Ragged

PIECES = 24
"""Of the text, of which each becomes a shard."""
PROGRAM = """
import sys
from pathlib import Path
from fastserve.config import load_config
from fastserve.training import corpus
from fastserve.training.generation import prepare
corpus.SHARD_TOKENS = 1
prepare.prepare(load_config(None, sys.argv[2:]), Path(sys.argv[1]))
"""
"""Prepares in the folder of its first argument what the other ones configure."""


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    data, draw = tmp_path / "text.txt", np.random.default_rng(0)
    words = draw.integers(0, 1000, PIECES * (1 << 15) // 12).tolist()
    data.write_text("".join(f"words {word:>5}\n" for word in words), "utf-8")
    return ["task=generation", f"data.train={data}", "data.validation=0.1", "text.vocabulary_size=300"]


def start(folder: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), *settings], stderr=subprocess.DEVNULL)


def shards(folder: Path) -> list[Path]:
    """What says that a shard is whole."""
    return sorted((folder / "train").glob("0*.json"))


def killed(folder: Path, settings: list[str]) -> None:
    process = start(folder, settings)
    deadline = time.monotonic() + 120
    while len(shards(folder)) < PIECES // 4:
        assert process.poll() is None, "it was over before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (folder / "train" / "done.json").exists()


def contents(folder: Path, part: str) -> list[np.ndarray]:
    rows = Shards.open(folder / part)
    batches = [batch.inputs["tokens"] for batch in rows.in_order(1 << 20)]
    tokens = Ragged.concatenate(batches)
    return [tokens.values, tokens.offsets, rows.targets, rows.row_numbers]


def test_it_goes_on_at_the_next_shard(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    killed(cut, settings)
    shards(cut)[-1].unlink()  # as if the last shard had just been written, and nothing said of it yet
    before = {path: path.stat().st_mtime_ns for path in shards(cut)}
    monkeypatch.setattr(corpus, "SHARD_TOKENS", 1)
    for folder in (cut, whole):
        prepare.prepare(config.load_config(None, settings), folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "none was made again"
    assert len(shards(cut)) == len(shards(whole)) > len(before)
    for part in ("train", "validation"):
        for found, expected in zip(contents(cut, part), contents(whole, part), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert (cut / "train/done.json").read_text() == (whole / "train/done.json").read_text(), "all tokens are counted"
