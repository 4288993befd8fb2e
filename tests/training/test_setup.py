"""What a network computes once is what it computes with each batch, and is kept in memory where it fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastserve.data.memory import MemoryRows
from fastserve.data.store import Store, write_store
from fastserve.models import NetworkShape, build
from fastserve.models.network import HasFixedInputs
from fastserve.models.ragged import RaggedTensor
from fastserve.training.classification import setup
from fastserve.types import Ragged


def test_rows_computed_once_are_those_computed_with_each_batch_of_a_large_store(
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
    assert isinstance(memory, MemoryRows)
    assert setup.precomputed(network, store, tmp_path / "scratch") is store
    assert not (tmp_path / "scratch").exists()
    assert len(memory) == len(store) == 40
    chosen = np.array([39, 3, 3, 17])
    once, raw = memory.batch(chosen), store.batch(chosen)
    assert once.targets.tolist() == raw.targets.tolist()
    assert set(once.inputs) != set(raw.inputs)
    for name, expected in network.precompute(raw.inputs).items():
        assert once.inputs[name].values.tolist() == expected.values.tolist()
        assert once.inputs[name].weights.tolist() == expected.weights.tolist()  # type: ignore[union-attr]
    outputs = [network({n: RaggedTensor.from_ragged(r) for n, r in batch.inputs.items()}) for batch in (once, raw)]
    assert torch.equal(*outputs)
