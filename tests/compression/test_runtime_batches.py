"""What the runtimes share: padding, batches, and whose scores the parity gate expects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_samples import save
from hypothesis import given
from hypothesis import strategies as st

from fastserve.bundle.format import ParityRow, RuntimeFile
from fastserve.bundle.runtimes.padded import logits_in_batches, pad
from fastserve.types import FloatArray, LongArray, Ragged


def sums(ids: LongArray, mask: LongArray) -> FloatArray:
    """A network whose logits say which row they are of: the sum of the ids, and how many there are."""
    return np.stack([(ids * mask).sum(1), mask.sum(1)], 1).astype(np.float32)


@given(rows=st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=20), budget=st.integers(0, 30))
def test_rows_come_back_in_their_order(rows: list[list[int]], budget: int) -> None:
    areas = []

    def compute(ids: LongArray, mask: LongArray) -> FloatArray:
        areas.append((len(ids), ids.size))
        return sums(ids, mask)

    found = logits_in_batches(Ragged.from_rows(rows), budget, compute)
    assert found.tolist() == [[sum(row), len(row)] for row in rows]
    assert all(count == 1 or size <= budget for count, size in areas)


def test_padding_and_the_empty_row() -> None:
    ids, mask = pad(Ragged.from_rows([[5, 6], [], [7]]))
    assert ids.tolist() == [[5, 6], [0, 0], [7, 0]]
    assert mask.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert [array.shape for array in pad(Ragged.from_rows([[]]))] == [(1, 1), (1, 1)]


def test_each_runtime_must_answer_what_it_gave_itself(tmp_path: Path) -> None:
    rows = (ParityRow(text="a", scores=(0.25, 0.75)), ParityRow(text="b", scores=(0.5, 0.5)))
    form = RuntimeFile(file="m.onnx", passed=True, parity=((0.3, 0.7), (0.4, 0.6)))
    manifest = save(tmp_path, "mlp", {"dim": 4}).manifest.model_copy(
        update={"parity": rows, "runtimes": {"onnx": form, "openvino": RuntimeFile(file="m.xml", passed=True)}}
    )
    assert [row.scores for row in manifest.parity_of("onnx")] == [(0.3, 0.7), (0.4, 0.6)]
    assert [row.text for row in manifest.parity_of("onnx")] == ["a", "b"]
    assert manifest.parity_of("torch") == manifest.parity_of("openvino") == rows


def test_openvino_reports_to_nobody() -> None:
    pytest.importorskip("nncf", reason="needs the extra 'compress'")
    code = """
import sys
from pathlib import Path
from fastserve.compression import openvino_model
openvino_model.check_installed(int8=True)
import nncf, openvino
openvino.Core()
print("openvino_telemetry" in sys.modules, type(sys.modules["nncf.telemetry.wrapper"].telemetry).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "MagicMock"]
