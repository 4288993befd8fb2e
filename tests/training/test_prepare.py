"""Preparation: every row in its store as the pipeline alone would encode it, and torch imported beside that work."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fastserve.config import Config, load_config
from fastserve.models import find
from fastserve.models.builtin import BUILTIN
from fastserve.plugins import NETWORKS
from fastserve.training.classification.prepare import Prepared, load, prepare
from fastserve.training.course import PREPARED

ROWS = 7_000


def write(path: Path, rows: int, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(400)]
    lines = [f"{seed} {i} " + " ".join(generator.choice(words, 4)) + f"\t{'ab'[i % 2]}" for i in range(rows)]
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    train, test = write(tmp_path / "train.tsv", ROWS, 1), write(tmp_path / "test.tsv", 300, 2)
    return load_config(None, [], {"data": {"train": str(train), "test": str(test)}, "model": {"network": "bag"}})


def test_every_row_is_in_its_store_as_one_process_encodes_it(config: Config, tmp_path: Path) -> None:
    prepare(config, tmp_path / "data")
    prepared = load(tmp_path / "data")
    assert len(prepared.train) + len(prepared.validation.store) == ROWS
    lines = (tmp_path / "train.tsv").read_text("utf-8").splitlines()
    check(prepared, lines)
    assert prepared.test is not None
    assert prepared.test.texts == [line.split("\t")[0] for line in (tmp_path / "test.tsv").read_text().splitlines()[1:]]
    held_out = prepared.pipeline.encode(prepared.test.texts)["ngrams"]
    stored = prepared.test.store.batch(np.arange(300)).inputs["ngrams"]
    np.testing.assert_array_equal(stored.values, held_out.values)


def check(prepared: Prepared, lines: list[str]) -> None:
    """The first and last training rows against the file."""
    rows = np.concatenate([np.arange(50), np.arange(len(prepared.train) - 50, len(prepared.train))])
    batch = prepared.train.batch(rows)
    cells = [lines[number - 1].split("\t") for number in prepared.train.row_numbers[rows].tolist()]
    plain = prepared.pipeline.encode([text for text, _ in cells])["ngrams"]
    np.testing.assert_array_equal(batch.inputs["ngrams"].values, plain.values)
    np.testing.assert_array_equal(batch.inputs["ngrams"].offsets, plain.offsets)
    assert [prepared.labels[target] for target in batch.targets.tolist()] == [label for _, label in cells]


def test_what_is_done_meanwhile_is_done_beside_and_has_ended(config: Config, tmp_path: Path) -> None:
    done: list[threading.Thread] = []
    prepare(config, tmp_path / "data", meanwhile=lambda: done.append(threading.current_thread()))
    assert len(done) == 1
    assert done[0] is not threading.main_thread()
    assert not done[0].is_alive()
    prepare(config, tmp_path / "data", meanwhile=lambda: done.append(threading.current_thread()))
    assert len(done) == 1  # nothing is encoded where it was


def test_an_error_in_encoding_leaves_nothing(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.tasks.classification.Classification.targets", lambda self, labels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_only_what_is_written_whole_is_loaded(config: Config, tmp_path: Path) -> None:
    prepare(config, tmp_path / "data")
    again = load(tmp_path / "data")
    assert (tmp_path / "data" / PREPARED).is_file()
    assert again.shape.columns == 1
    assert again.shape.outputs == 2


@pytest.mark.parametrize("name", sorted(NETWORKS.builtin))
def test_what_a_network_reads_is_known_before_it_is_imported(name: str) -> None:
    kind = find(name, causal=None)
    assert (BUILTIN[name].encodings, BUILTIN[name].preferences) == (kind.encodings, kind.preferences)


def test_torch_is_not_imported_before_texts_are_encoded() -> None:
    program = (
        "import sys, fastserve.api, fastserve.training.job as job\n"
        "from fastserve.config import load_config\n"
        "from fastserve.training import course\n"
        "for name in ('auto', 'bag', 'transformer'):\n"
        "    course.pick('classification').check(load_config(None, [f'model.network={name}']))\n"
        "print('torch' in sys.modules)\n"
        "job._import_training()\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]
