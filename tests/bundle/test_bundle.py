"""Saving and loading the folder that is a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_fakes import LABELS, save_tiny, tiny_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastserve
from fastserve import files
from fastserve.bundle.bundle import Bundle
from fastserve.bundle.format import DataSource, Lineage, ParityRow
from fastserve.errors import BundleError, StorageError
from fastserve.types import Metric, Report

REPORT = Report(
    "classification",
    120,
    {"accuracy": Metric(0.875, 0.81, 0.93), "roc_auc": Metric(float("nan"))},
    {
        "classes": [{"label": "a|b", "support": 60, "f1": {"value": 0.33361, "low": 0.2, "high": 0.4}}],
        "notes": ["Few."],
    },
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    lineage = Lineage(
        data=(DataSource(address="reviews.tsv", sha256="0" * 64, rows=9),), config={"a": {"b": 1}}, seed=3
    )
    parity = (ParityRow(text="好", scores=(0.25, 0.5, 0.25)),)
    saved = save_tiny(
        tmp_path / "m", lineage=lineage, parity=parity, report=REPORT, report_html="<p>", extra_files={"a/b.txt": "x"}
    )
    loaded = Bundle.load(tmp_path / "m")
    assert loaded.manifest == saved.manifest
    assert loaded.manifest.fastserve == fastserve.__version__
    assert loaded.manifest.lineage == lineage
    assert loaded.manifest.parity == parity
    assert loaded.manifest.labels == LABELS
    assert loaded.manifest.metrics == {"accuracy": 0.875}  # what is not a number is no headline
    report = loaded.report()
    assert report is not None
    assert report.metrics["accuracy"] == REPORT.metrics["accuracy"]
    assert report.details == REPORT.details
    for name, tensor in tiny_network().state_dict().items():
        np.testing.assert_array_equal(loaded.weights()[name], tensor.numpy())
    assert files.verify_sums(tmp_path / "m") == []
    assert set(files.read_sums(tmp_path / "m")) == {
        "a/b.txt", "card.md", "fastserve.json", "model.safetensors", "report.html", "report.json", "vocabulary.txt"
    }  # fmt: skip


def test_an_existing_folder_is_not_replaced(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", seed=0)
    with pytest.raises(StorageError, match="exists already"):
        save_tiny(tmp_path / "m", seed=1)
    np.testing.assert_array_equal(Bundle.load(tmp_path / "m").weights()["out.bias"], tiny_network(0).out.bias.detach())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_tiny(tmp_path / "m", lineage=Lineage(config={"x": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_an_extra_file_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="outside"):
        save_tiny(tmp_path / "m", extra_files={"../evil": b"x"})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found_and_named(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        save_tiny(folder)
    name = data.draw(st.sampled_from(sorted(files.read_sums(folder))))
    content = (folder / name).read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[position] ^= data.draw(st.integers(1, 255))
    try:
        (folder / name).write_bytes(damaged)
        with pytest.raises(BundleError, match=name):
            Bundle.load(folder)
    finally:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", ["fastserve.json", "model.safetensors", "vocabulary.txt", "SHA256SUMS"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_tiny(tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.load(tmp_path / "m")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights_are_an_error_also_without_checksums(tmp_path: Path, keep: int) -> None:
    save_tiny(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        Bundle.load(tmp_path / "m", verify=False).weights()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "a", seed=0)
    save_tiny(tmp_path / "b", seed=1)
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    (tmp_path / "a" / "SHA256SUMS").unlink()
    files.write_sums(tmp_path / "a")
    with pytest.raises(BundleError, match="other weights"):
        Bundle.load(tmp_path / "a")


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no model folder"):
        Bundle.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match="not a FastServe model folder"):
        Bundle.load(tmp_path)


def test_a_folder_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "m")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "sha256", refuse)  # modes mean nothing to root, who runs tests in containers
    with pytest.raises(BundleError, match=r"card\.md cannot be read: Permission denied"):
        Bundle.load(tmp_path / "m")


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", report=REPORT)
    (tmp_path / "m" / "report.json").write_text('{"task": 1}', "utf-8")
    with pytest.raises(BundleError, match=r"report\.json"):
        Bundle.load(tmp_path / "m", verify=False).report()


def test_all_types_of_weights_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {
        "bf16": torch.randn(5, 3).bfloat16(),
        "half": torch.randn(4).half(),
        "long": torch.arange(6).reshape(2, 3),
        "bool": torch.tensor([True, False]),
        "int8": torch.tensor([-3, 4], dtype=torch.int8),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 4),
        "numpy": np.arange(4, dtype=np.float32)[::2],
    }
    shared = torch.randn(3)
    weights |= {"one": shared, "same": shared}
    bundle = save_tiny(tmp_path / "m", weights=weights)
    found = bundle.weights()
    assert found["bf16"].dtype == np.float32
    for name, value in weights.items():
        expected = value if isinstance(value, np.ndarray) else value.float().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float32), expected)
        assert found[name].shape == expected.shape
        assert found[name].flags.writeable


def test_numpy_weights_alone_need_no_torch(tmp_path: Path) -> None:
    """Reading and writing in a process that cannot import torch."""
    code = f"""
import sys
sys.modules["torch"] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import numpy as np
from fastserve.bundle.bundle import Bundle, save_bundle
from fastserve.bundle.format import NetworkSpec
from fastserve.bundle import card, format, predictor, weights
from fastserve.bundle.runtimes import base
class Pipeline:
    def save(self, folder): return {{}}
save_bundle(Path({str(tmp_path / "m")!r}), task="classification", labels=["a"], network=NetworkSpec(name="x"),
            pipeline=Pipeline(), weights={{"w": np.ones(3, np.float32)}})
print(Bundle.load({str(tmp_path / "m")!r}).weights()["w"].sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3.0"


def test_the_card_shows_what_a_reader_needs(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", report=REPORT, lineage=Lineage(config={"name": "tiny"}, parent="base@2"))
    card = (tmp_path / "m" / "card.md").read_text("utf-8")
    for part in (
        "0.8750",
        "0.3336",
        "Few.",
        "By label",
        "0.8100 to 0.9300",
        "a\\|b",
        "base@2",
        "fastserve serve tiny",
        "curl",
        "`positive`",
        "limits",
    ):
        assert part in card


def test_nothing_in_the_folder_depends_on_its_place(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", report=REPORT)
    moved = (tmp_path / "m").rename(tmp_path / "elsewhere")
    assert Bundle.load(moved).manifest.labels == LABELS
    for path in moved.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
    json.loads((moved / "fastserve.json").read_bytes())
