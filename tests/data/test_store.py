"""The encoded store gives back what was written, whole or not at all, and keeps little in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastserve.data.store import Store, write_store
from fastserve.errors import StorageError
from fastserve.types import Encoded, Ragged


def encoded(rows: list[list[int]]) -> Encoded:
    tokens = Ragged.from_rows(rows)
    return {"tokens": tokens, "ngrams": Ragged(tokens.values, tokens.offsets, tokens.values.astype(np.float32) / 2)}


@given(
    st.lists(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=4), min_size=1, max_size=4), st.data()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_what_was_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[list[int]]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    rows = [row for block in blocks for row in block]
    with write_store(folder) as writer:
        done = 0
        for block in blocks:
            numbers = np.arange(done, done + len(block))
            writer.append(encoded(block), numbers % 3, numbers + 2)
            done += len(block)
    store = Store.open(folder)
    assert len(store) == len(rows)
    assert store.lengths("tokens").tolist() == [len(row) for row in rows]
    assert store.row_numbers.tolist() == list(range(2, len(rows) + 2))
    if rows:
        wanted = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)), np.int64)
        for view, at in ((store, wanted), (store.subset(wanted), np.arange(len(wanted)))):
            batch = view.batch(at)
            expected = encoded([rows[i] for i in wanted])
            for name, ragged in expected.items():
                assert np.array_equal(batch.inputs[name].values, ragged.values)
                assert np.array_equal(batch.inputs[name].offsets, ragged.offsets)
            assert np.array_equal(batch.inputs["ngrams"].weights, expected["ngrams"].weights)
            assert batch.targets.tolist() == [i % 3 for i in wanted]
    assert store.verify() == []


def test_several_labels_and_subsets_of_subsets(tmp_path: Path) -> None:
    targets = np.eye(4, dtype=np.float32)
    with write_store(tmp_path / "s") as writer:
        writer.append({"tokens": Ragged.from_rows([[1], [2, 2], [3], [4]])}, targets, np.arange(4))
    view = Store.open(tmp_path / "s").subset(np.array([3, 1, 0])).subset(np.array([1, 2]))
    assert view.lengths("tokens").tolist() == [2, 1]
    assert np.array_equal(view.targets, targets[[1, 0]])
    assert view.batch(np.array([0])).inputs["tokens"].values.tolist() == [2, 2]


def test_in_order_gives_every_row_once_as_batch_does(tmp_path: Path) -> None:
    with write_store(tmp_path / "s") as writer:
        writer.append(encoded([[1, 2], [], [3], [4, 5, 6], [7]]), np.arange(5), np.arange(5) + 2)
    store = Store.open(tmp_path / "s")
    for part in (store, store.subset(np.array([4, 0, 3]))):
        batches = list(part.in_order(2))
        assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(len(part)))
        for batch in batches:
            expected = part.batch(batch.rows)
            assert batch.targets.tolist() == expected.targets.tolist()
            for name, ragged in expected.inputs.items():
                assert batch.inputs[name].values.tolist() == ragged.values.tolist()
                assert batch.inputs[name].offsets.tolist() == ragged.offsets.tolist()


def test_damage_is_named(tmp_path: Path) -> None:
    with write_store(tmp_path / "s") as writer:
        writer.append(encoded([[1, 2], [3]]), np.zeros(2, np.int64), np.arange(2))
    first = Store.open(tmp_path / "s").fingerprint
    values = tmp_path / "s" / "tokens.values.bin"
    content = bytearray(values.read_bytes())
    content[0] ^= 1
    values.write_bytes(content)
    store = Store.open(tmp_path / "s")
    assert store.verify() == ["tokens.values.bin is damaged"]
    assert store.fingerprint == first
    values.write_bytes(content[:-1])
    with pytest.raises(StorageError, match=r"tokens\.values\.bin is damaged: it has 11 bytes, expected 12"):
        Store.open(tmp_path / "s")
    with pytest.raises(StorageError, match="no store"):
        Store.open(tmp_path / "absent")


def test_blocks_that_do_not_fit_together_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as many rows"), write_store(tmp_path / "s") as writer:
        writer.append(encoded([[1]]), np.zeros(2, np.int64), np.arange(1))
    with write_store(tmp_path / "whole") as writer:
        writer.append(encoded([[1]]), np.zeros(1, np.int64), np.arange(1))
        with pytest.raises(ValueError, match="encodings"):
            writer.append({"tokens": Ragged.from_rows([[1]])}, np.zeros(1, np.int64), np.arange(1))
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


WRITER = """
import sys, numpy as np
from pathlib import Path
from fastserve.data.store import write_store
from fastserve.types import Ragged
with write_store(Path(sys.argv[1])) as writer:
    print("writing", flush=True)
    while True:
        writer.append({"tokens": Ragged.from_rows([[1, 2, 3]] * 1000)}, np.zeros(1000, np.int64), np.arange(1000))
"""


def test_a_killed_writer_leaves_no_half_store(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "s").exists()
    with write_store(tmp_path / "s") as writer:
        writer.append(encoded([[1]]), np.zeros(1, np.int64), np.arange(1))
    assert len(Store.open(tmp_path / "s")) == 1


READER = """
import sys, numpy as np
from dataclasses import replace
from pathlib import Path
from fastserve.data.store import Store
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
store = replace(Store.open(Path(sys.argv[1])), resident_bytes=30 << 20)
before = most = resident()
total = 0
for rows in np.random.default_rng(0).permutation(len(store)).reshape(-1, 100):
    total += int(store.batch(rows).inputs["tokens"].values.sum())
    most = max(most, resident())
print(total, most - before)
"""


def test_reading_a_large_store_keeps_memory_small(tmp_path: Path) -> None:
    values = np.arange(10_000, dtype=np.int32)
    block = Ragged(np.tile(values, 100), np.arange(0, 1_000_001, 2500))
    with write_store(tmp_path / "s") as writer:
        for start in range(0, 8000, 400):
            writer.append({"tokens": block}, np.zeros(400, np.int64), np.arange(start, start + 400))
    command = [sys.executable, "-c", READER, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total, grown = map(int, done.stdout.split())
    assert total == int(values.sum()) * 2000
    assert grown < 40 << 20  # of 80 MB
