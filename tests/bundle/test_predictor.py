"""Answering with a bundle: the torch runtime, the choice of a runtime, parity."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from bundle_fakes import LABELS, TinyPipeline, save_tiny, tiny_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.format import ParityRow, RuntimeFile
from fastserve.bundle.predictor import Predictor
from fastserve.bundle.runtimes.base import automatic, choose_runtime
from fastserve.bundle.runtimes.padded import batches, padded_lengths
from fastserve.bundle.runtimes.torch import TorchRuntime
from fastserve.errors import BundleError, NotFoundError
from fastserve.models import RaggedTensor
from fastserve.types import Ragged

TEXTS = ["物流很快", "a", "", "quite a long text that goes on " * 9, "so so", "质量不错" * 40, "b", "zzz"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return save_tiny(tmp_path / "m")


def reference(texts: list[str]) -> np.ndarray:
    """One text at a time through the module."""
    network = tiny_network().eval()
    rows = [RaggedTensor.from_ragged(TinyPipeline().encode([text])["tokens"]) for text in texts]
    with torch.no_grad():
        return np.concatenate([torch.softmax(network({"tokens": row}), 1).numpy() for row in rows])


def test_scores_are_those_of_the_module(bundle: Bundle) -> None:
    scores = Predictor(bundle).scores(TEXTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, reference(TEXTS), atol=1e-6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40), max_size=20), st.integers(1, 200))
def test_results_do_not_depend_on_the_batch(bundle: Bundle, texts: list[str], budget: int) -> None:
    runtime = TorchRuntime(tiny_network().eval(), torch.device("cpu"), budget)
    encode = TinyPipeline().encode
    together = runtime.logits(encode(texts))
    assert together.shape == (len(texts), 3)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(together[row], runtime.logits(encode([text]))[0], atol=1e-5)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(batches(np.array(lengths, np.int64), budget))
    assert sorted(np.concatenate(groups).tolist() if groups else []) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[row] for row in group) * len(group) <= budget


def test_the_length_of_a_row_is_that_of_its_longest_encoding() -> None:
    encoded = {"tokens": Ragged.from_rows([[1], [], [1, 2, 3]]), "ngrams": Ragged.from_rows([[1, 2], [], [5]])}
    assert padded_lengths(encoded).tolist() == [2, 1, 3]


def test_predictions_name_the_label(bundle: Bundle) -> None:
    predictor = Predictor(bundle).warm()
    for prediction, scores in zip(predictor.predict(TEXTS), reference(TEXTS), strict=True):
        assert prediction.label == LABELS[scores.argmax()]
        assert prediction.score == max(prediction.scores.values())
        assert list(prediction.scores) == list(LABELS)


def test_several_labels_a_text(tmp_path: Path) -> None:
    bundle = save_tiny(tmp_path / "m", multi_label=True)
    scores = Predictor(bundle).scores(TEXTS)
    logits = TorchRuntime.load(bundle).logits(TinyPipeline().encode(TEXTS))
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-6)
    for prediction, row in zip(Predictor(bundle).predict(TEXTS), scores, strict=True):
        assert prediction.label == [label for label, score in zip(LABELS, row, strict=True) if score >= 0.5]


def test_no_texts_no_answers(bundle: Bundle) -> None:
    assert Predictor(bundle).scores([]).shape == (0, 3)
    assert Predictor(bundle).predict([]) == []
    assert Predictor(bundle).predict("good") == Predictor(bundle).predict(["good"])


def test_parity_holds_and_its_breach_is_told(tmp_path: Path) -> None:
    rows = [ParityRow(text=t, scores=tuple(map(float, s))) for t, s in zip(TEXTS, reference(TEXTS), strict=True)]
    good = save_tiny(tmp_path / "good", parity=rows)
    assert Predictor(good).check_parity() == []
    other = save_tiny(tmp_path / "other", seed=1, parity=rows)
    faults = Predictor(other).check_parity()
    assert len(faults) == len(rows)
    assert "parity row 1" in faults[0]
    assert TEXTS[0] not in " ".join(faults)
    few = save_tiny(tmp_path / "few", parity=[ParityRow(text="a", scores=(1.0,))])
    assert "1 scores are stored, the model gives 3" in Predictor(few).check_parity()[0]
    broken = save_tiny(
        tmp_path / "nan", parity=rows, weights={k: v * np.nan for k, v in tiny_network().state_dict().items()}
    )
    assert len(Predictor(broken).check_parity()) == len(rows)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    weights = tiny_network().state_dict()
    weights["out.bias"] = torch.zeros(7)
    with pytest.raises(BundleError, match=r"(?s)do not fit.*out\.bias"):
        TorchRuntime.load(save_tiny(tmp_path / "m", weights=weights))


def test_auto_is_torch_for_an_own_network(bundle: Bundle) -> None:
    assert choose_runtime(bundle).name == "torch"


@pytest.mark.parametrize(
    ("passed", "installed", "check", "has_gpu", "chosen"),
    [
        (True, True, {}, False, "onnx"),
        (True, True, {"speed": 1.5}, False, "onnx"),
        (True, True, {"speed": 0.9}, False, "torch"),
        (True, True, {"speed": 1.5}, True, "torch"),
        (True, False, {}, False, "torch"),
        (False, True, {"speed": 1.5}, False, "torch"),
    ],
)
def test_auto_takes_another_form_only_when_it_is_as_good_and_faster_and_can_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passed: bool,
    installed: bool,
    check: dict[str, float],
    has_gpu: bool,
    chosen: str,
) -> None:
    class OnnxRuntime:
        name = "onnx"

        @classmethod
        def load(cls, bundle: Bundle, threads: int | None = None) -> OnnxRuntime:
            assert threads == 2
            return cls()

    runtime, library = ModuleType("fastserve.bundle.runtimes.onnx"), ModuleType("onnxruntime")
    runtime.OnnxRuntime = OnnxRuntime  # type: ignore[attr-defined]
    library.__spec__ = ModuleSpec("onnxruntime", None)
    monkeypatch.setitem(sys.modules, runtime.__name__, runtime)
    monkeypatch.setitem(sys.modules, "onnxruntime", library if installed else None)
    form = RuntimeFile(file="model.onnx", passed=passed, check={"accuracy": 0.9, **check})
    bundle = save_tiny(tmp_path / "m", runtimes={"onnx": form}, extra_files={"model.onnx": b"x"})
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr("fastserve.device.has_gpu", lambda: has_gpu)
    assert choose_runtime(Bundle.load(bundle.folder), threads=2).name == chosen


def test_auto_takes_the_fastest_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"onnx": 1.4, "openvino": 2.1}
    forms = {name: RuntimeFile(file="model", passed=True, check={"speed": speed}) for name, speed in speeds.items()}
    bundle = save_tiny(tmp_path / "m", runtimes=forms, extra_files={"model": b"x"})
    monkeypatch.setattr("fastserve.bundle.runtimes.base._is_installed", lambda name: True)
    monkeypatch.setattr("fastserve.device.has_gpu", lambda: False)
    assert automatic(bundle) == "openvino"


def test_an_unknown_runtime_is_refused(bundle: Bundle) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'torch'"):
        choose_runtime(bundle, "torhc")
