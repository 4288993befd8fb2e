"""What a network computes once is the same in memory and on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastserve.data.memory import MemoryRows
from fastserve.data.store import Store, write_store
from fastserve.models import NetworkShape, build
from fastserve.models.network import HasFixedInputs
from fastserve.training import setup
from fastserve.types import Ragged


def test_rows_computed_once_are_the_same_in_memory_and_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    texts = [np.unique(random.integers(0, 50, random.integers(0, 9))).astype(np.int32) for _ in range(40)]
    ragged = Ragged.from_rows(texts)
    ngrams = Ragged(ragged.values, ragged.offsets, np.ones(len(ragged.values), np.float32))
    with write_store(tmp_path / "store") as writer:
        writer.append({"ngrams": ngrams}, np.arange(40) % 2, np.arange(40))
    store = Store.open(tmp_path / "store")
    network = build("bag", {}, NetworkShape({"ngrams": 50}, 2))
    assert isinstance(network, HasFixedInputs)
    network.fit_statistics([({"ngrams": ngrams}, None)])  # type: ignore[operator]
    monkeypatch.setattr(setup, "COMPUTED_ROWS", 7)
    memory = setup.precomputed(network, store, tmp_path / "scratch")
    monkeypatch.setattr(setup, "MEMORY_VALUES", 10)
    disk = setup.precomputed(network, store, tmp_path / "scratch")
    assert isinstance(memory, MemoryRows)
    assert isinstance(disk, Store)
    assert len(memory) == len(disk) == 40
    chosen = np.array([39, 3, 3, 17])
    left, right = memory.batch(chosen), disk.batch(chosen)
    assert left.targets.tolist() == right.targets.tolist()
    for name, expected in right.inputs.items():
        assert left.inputs[name].values.tolist() == expected.values.tolist()
        assert left.inputs[name].weights.tolist() == expected.weights.tolist()  # type: ignore[union-attr]
