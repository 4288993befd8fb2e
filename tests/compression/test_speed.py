"""How much faster a form is than the usual runtime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_samples import NETWORKS, TEXTS, save

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.runtimes.table import TableRuntime
from fastserve.bundle.runtimes.torch import TorchRuntime
from fastserve.compression import ExportOptions, export
from fastserve.compression.speed import times_as_fast
from fastserve.types import Encoded, FloatArray


class Sleeper:
    """A runtime whose calls take a known time, however many texts they have."""

    name = "onnx"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def logits(self, encoded: Encoded) -> FloatArray:
        time.sleep(self.seconds)
        return np.zeros((len(next(iter(encoded.values()))), 2), np.float32)


@pytest.mark.parametrize(
    ("network", "usual"), [("transformer", TorchRuntime), ("textcnn", TableRuntime)], ids=["torch", "table"]
)
def test_it_is_measured_against_what_would_answer_otherwise(
    network: str, usual: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    bundle = save(tmp_path, network, NETWORKS[network])
    monkeypatch.setattr(usual, "load", lambda *_, **__: Sleeper(0.020))
    monkeypatch.setattr("fastserve.bundle.runtimes.onnx.OnnxRuntime.load", lambda *_, **__: Sleeper(0.005))
    threads = torch.get_num_threads()
    assert 2.5 < times_as_fast(bundle, "onnx", TEXTS[:3]) < 6
    assert torch.get_num_threads() == threads


def test_real_runtimes_are_measured(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    bundle = save(tmp_path, "transformer", NETWORKS["transformer"])
    made: Bundle = export(bundle, tmp_path / "m", ExportOptions(runtime="onnx")).bundle
    assert times_as_fast(made, "onnx", ["one text"]) > 0
