"""From a bundle to one that also holds its network in another runtime's form, and what that form answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import export_samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastserve as fs
from fastserve import files
from fastserve.bundle.bundle import Bundle, amend_manifest
from fastserve.bundle.predictor import Predictor
from fastserve.bundle.runtimes.base import choose_runtime
from fastserve.cli.main import run
from fastserve.compression import ExportOptions, export
from fastserve.errors import BundleError, ConfigError, MissingExtraError, UserError, WorkError
from fastserve.evaluation.html import report_html
from fastserve.registry import Registry

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="needs the extra 'onnx'")

TEXTS = export_samples.TEXTS


def needs(runtime: str, int8: bool) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    if runtime == "openvino" and int8:
        pytest.importorskip("nncf", reason="needs the extra 'compress'")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A transformer that tells good from bad."""
    options = export_samples.NETWORKS["transformer"]
    return export_samples.save(tmp_path_factory.mktemp("learned"), "transformer", options, steps=40)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return export_samples.write_rows(tmp_path_factory.mktemp("data") / "test.tsv", export_samples.labelled(200, seed=7))


@pytest.fixture(scope="module")
def exported(learned: Bundle, data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Bundle]:
    """The learned transformer by runtime and precision, each made once."""
    made: dict[tuple[str, bool], Bundle] = {}

    def find(runtime: str, int8: bool) -> Bundle:
        needs(runtime, int8)
        if (runtime, int8) not in made:
            options = ExportOptions(runtime=runtime, int8=int8, data=data)
            made[runtime, int8] = export(learned, tmp_path_factory.mktemp("form") / "m", options, parent="rev@1").bundle
        return made[runtime, int8]

    return find


FORMS = [
    ("onnx", False),
    ("openvino", False),
    ("onnx", True),
    pytest.param("openvino", True, marks=pytest.mark.heavy),  # the calibration takes half a minute
]


@pytest.mark.parametrize(("runtime", "int8"), FORMS)
def test_the_new_form_passes_serves_and_is_what_was_evaluated(
    learned: Bundle, exported: Any, data: str, runtime: str, int8: bool
) -> None:
    made = Bundle.load(exported(runtime, int8).folder)
    form = made.manifest.runtimes[runtime]
    assert form.passed
    assert form.check["texts"] == 200
    assert form.check["accuracy"] >= form.check["accuracy_torch"] - 0.005
    assert 0.9 < form.check["accuracy_torch"] == pytest.approx(accuracy(Predictor(learned, "torch")))
    predictor = Predictor(made)
    assert predictor.runtime.name == runtime
    assert predictor.check_parity(1e-5) == []
    assert Predictor(made, "torch").check_parity(1e-5) == []
    report = made.report()
    assert report is not None
    assert report["accuracy"] == made.manifest.metrics["accuracy"] == accuracy(predictor)
    assert f"Measured with {runtime} {'int8' if int8 else 'fp32'}" in report.details["notes"][-1]
    assert made.manifest.lineage.parent == "rev@1"
    assert made.manifest.model_sha256 == learned.manifest.model_sha256
    assert files.verify_sums(made.folder) == []


def accuracy(predictor: Predictor) -> float:
    rows = export_samples.labelled(200, seed=7)
    found = predictor.predict([text for text, _ in rows])
    return sum(answer.label == label for answer, (_, label) in zip(found, rows, strict=True)) / len(rows)


@pytest.mark.parametrize(("runtime", "int8"), FORMS)
def test_a_row_does_not_depend_on_its_neighbours(exported: Any, runtime: str, int8: bool) -> None:
    predictor = Predictor(exported(runtime, int8), runtime, threads=1)
    alone = np.concatenate([predictor.scores([text]) for text in TEXTS])
    np.testing.assert_allclose(predictor.scores(TEXTS), alone, atol=1e-5)


def test_int8_really_rounds_and_is_smaller(learned: Bundle, exported: Any) -> None:
    plain, rounded = (exported("onnx", int8) for int8 in (False, True))
    difference = np.abs(Predictor(plain, "onnx").scores(TEXTS) - Predictor(rounded, "onnx").scores(TEXTS)).max()
    assert 1e-6 < difference < 0.1
    assert (rounded.folder / "model.onnx").stat().st_size < (plain.folder / "model.onnx").stat().st_size


@pytest.fixture(scope="module")
def every_network(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Predictor, Predictor]]:
    """Networks in fp32: what torch answers, and what ONNX Runtime does."""
    folder = tmp_path_factory.mktemp("networks")
    networks = {**export_samples.NETWORKS, str(tiny_folder): {}}
    networks["transformer"] = {**networks["transformer"], "pooling": "cls"}
    found = {}
    for number, (name, options) in enumerate(networks.items()):
        bundle = export_samples.save(folder / str(number), name, options)
        made = export(bundle, folder / f"{number}-onnx", ExportOptions(runtime="onnx"))
        assert made.passed
        found[name] = Predictor(bundle, "torch"), Predictor(made.bundle, "onnx")
    return found


@settings(max_examples=20, deadline=None)
@given(picked=st.lists(st.sampled_from([*TEXTS, "", "很好"]), min_size=1, max_size=12))
def test_fp32_equals_torch_for_any_batch(every_network: Any, picked: list[str]) -> None:
    for name, (before, after) in every_network.items():
        np.testing.assert_allclose(after.scores(picked), before.scores(picked), atol=1e-4, err_msg=name)


def test_a_network_that_tables_serve_keeps_them(every_network: Any, tmp_path: Path) -> None:
    bundle = every_network["textcnn"][1].bundle
    assert choose_runtime(amended(bundle, 0.8)).name == "table"
    assert choose_runtime(amended(bundle, 1.5)).name == "onnx"
    assert bundle.report() is None


def amended(bundle: Bundle, speed: float) -> Bundle:
    """As if its form had been measured to be so many times as fast."""
    form = bundle.manifest.runtimes["onnx"]
    form = form.model_copy(update={"check": {**form.check, "speed": speed}})
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"runtimes": {"onnx": form}}))


def test_what_passed_and_is_slower_is_kept_but_not_used(learned: Bundle, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(import_module("fastserve.compression.export"), "times_as_fast", lambda *_: 0.7)
    made = export(learned, tmp_path / "m", ExportOptions(runtime="onnx"))
    assert made.passed
    assert (made.speed, made.serves) == (0.7, "torch")
    assert choose_runtime(Bundle.load(made.bundle.folder)).name == "torch"
    assert made.bundle.report() is None


def test_the_page_keeps_the_curves_of_the_training(exported: Any, tmp_path: Path) -> None:
    evaluated = exported("onnx", True)
    history = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    trained = tmp_path / "trained"
    shutil.copytree(evaluated.folder, trained)
    report = evaluated.report()
    page = report_html(report, history=history, faults={"rows": 3})
    (trained / "report.html").write_text(page, "utf-8")
    amend_manifest(trained, evaluated.manifest, ("report.html",))
    made = export(Bundle.load(trained), tmp_path / "m", ExportOptions(runtime="onnx"))
    written = (made.bundle.folder / "report.html").read_text("utf-8")
    for kind in ("training", "data"):
        section = re.search(rf'<section id="{kind}">.*?</section>', page, re.DOTALL)
        assert section is not None
        assert written.count(section[0]) == 1


def test_without_data_the_report_says_what_was_compared(exported: Any, learned: Bundle, tmp_path: Path) -> None:
    evaluated = exported("onnx", True)  # it has a report
    made = export(evaluated, tmp_path / "m", ExportOptions(runtime="onnx"))
    report = made.bundle.report()
    assert report is not None
    assert report.metrics == evaluated.report().metrics
    assert "before the network was written as onnx fp32" in report.details["notes"][-1]
    assert "6 texts" in (made.bundle.folder / "card.md").read_text("utf-8")
    assert "before the network was written" in (made.bundle.folder / "report.html").read_text("utf-8")
    assert "accuracy" not in made.bundle.manifest.runtimes["onnx"].check
    assert Bundle.load(made.bundle.folder).manifest.runtimes.keys() == {"onnx"}


def test_two_forms_in_one_folder(exported: Any, tmp_path: Path) -> None:
    needs("openvino", False)
    made = export(exported("onnx", False), tmp_path / "m", ExportOptions(runtime="openvino")).bundle
    made = Bundle.load(made.folder)
    assert list(made.manifest.runtimes) == ["openvino", "onnx"]
    for runtime in ("auto", "openvino", "onnx", "torch"):
        assert Predictor(made, runtime).check_parity(1e-5) == []


def test_what_lost_too_much_is_kept_but_not_used(learned: Bundle, data: str, tmp_path: Path, monkeypatch: Any) -> None:
    """The matrices of the graph are damaged on the way, as a bad rounding would."""
    from fastserve.compression import onnx_graph

    def spoil(source: Path, target: Path) -> None:
        import onnx
        from onnx import numpy_helper

        model = onnx.load(source)
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.ndim == 2:
                tensor.CopyFrom(numpy_helper.from_array(np.sign(array).astype(np.float32), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(onnx_graph, "quantize_graph", spoil)
    made = export(learned, tmp_path / "m", ExportOptions(runtime="onnx", int8=True, data=data))
    assert not made.passed
    assert made.serves == "torch"
    assert made.check.accuracy < made.check.accuracy_torch
    assert choose_runtime(Bundle.load(made.bundle.folder)).name == "torch"
    assert made.bundle.report() is None
    assert Predictor(made.bundle).check_parity(1e-5) == []


def test_the_command_publishes_the_next_version(learned: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    first = Registry().publish(learned.folder, "rev")
    assert run(["export", "rev", "--runtime", "onnx", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (result["model"], result["passed"], result["serves"]) == ("rev@2", True, "onnx")
    assert result["check"]["max_difference"] < 1e-4
    assert [step.reference for step in Registry().lineage("rev@2")] == ["rev@2", first.reference]
    assert Registry().verify("rev") == {"rev@1": [], "rev@2": []}
    assert Registry().diff("rev@1", "rev@2").weights_equal


def test_the_verb_in_python(learned: Bundle, data: str, tmp_path: Path) -> None:
    model = fs.load(Registry().publish(learned.folder, "rev").reference)
    made = model.export("onnx", int8=True, data=data)
    assert (made.reference, made.predictor.runtime.name) == ("rev@2", "onnx")
    assert made.bundle.manifest.lineage.parent == "rev@1"
    assert [answer.label for answer in made.predict(["good", "很差"])] == ["positive", "negative"]
    assert fs.load(learned.folder).export("onnx", out=tmp_path / "m").version is None
    with pytest.raises(UserError, match="--name NAME or --out FOLDER"):
        fs.load(learned.folder).export("onnx")
    with pytest.raises(ConfigError, match="onyx"):
        model.export("onyx")


def test_the_command_refuses_unclear_words(learned: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, out = str(learned.folder), str(tmp_path / "m")
    for words, told in [
        ([folder], "--name NAME or --out FOLDER"),
        ([folder, "--out", out, "--name", "rev"], "give one of them"),
        ([folder, "--out", out, "--int8"], "--data FILE"),
        ([folder, "--out", out, "--max-drop", "-1"], "max_drop"),
    ]:
        assert run(["export", *words, "--runtime", "onnx"]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("form", "int8"), [("onnx", True), ("openvino", False)])
def test_it_answers_without_torch(exported: Any, form: str, int8: bool) -> None:
    """In a process where torch cannot be imported."""
    bundle = exported(form, int8)
    code = """
import json, sys
sys.modules["torch"] = None
from fastserve.bundle.bundle import Bundle, amend_manifest
from fastserve.bundle.predictor import Predictor
predictor = Predictor(Bundle.load(sys.argv[1]), threads=1)
print(json.dumps([predictor.runtime.name, predictor.scores(json.loads(sys.argv[2])).tolist()]))
"""
    words = [sys.executable, "-W", "error", "-c", code, str(bundle.folder), json.dumps(TEXTS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    runtime, scores = json.loads(done.stdout)
    assert runtime == form
    np.testing.assert_allclose(scores, Predictor(bundle).scores(TEXTS), atol=1e-6)


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    bundle = export_samples.save(tmp_path / "own", "export_samples:Deciding", {})
    with pytest.raises(WorkError, match=r"'export_samples:Deciding' cannot be written as an ONNX graph"):
        export(bundle, tmp_path / "out" / "m", ExportOptions(runtime="onnx"))
    assert list((tmp_path / "out").iterdir()) == []


def test_int8_without_data_is_refused(learned: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        export(learned, tmp_path / "m", ExportOptions(runtime="onnx", int8=True))


def test_a_network_without_a_form_is_refused(tmp_path: Path) -> None:
    bundle = export_samples.save(tmp_path / "bag", "bag", {})
    with pytest.raises(ConfigError, match="'bag' network cannot be exported"):
        export(bundle, tmp_path / "m", ExportOptions(runtime="onnx"))


@pytest.mark.parametrize(
    ("runtime", "library", "extra"), [("onnx", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")]
)
def test_a_missing_library_is_named_with_what_to_install(
    learned: Bundle, tmp_path: Path, monkeypatch: Any, runtime: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"runtime '{runtime}'.*fastserve-lm\[{extra}\]"):
        choose_runtime(learned, runtime)
    with pytest.raises(MissingExtraError, match=r"fastserve-lm\[compress\]"):
        export(learned, tmp_path / "m", ExportOptions(runtime=runtime))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_bundle_without_the_form_says_how_to_make_it(learned: Bundle, runtime: str) -> None:
    needs(runtime, False)
    with pytest.raises(BundleError, match=f"fastserve export MODEL --runtime {runtime}"):
        choose_runtime(learned, runtime)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_file_of_rubbish_is_named(exported: Any, tmp_path: Path, runtime: str) -> None:
    folder = shutil.copytree(exported(runtime, False).folder, tmp_path / "m")
    file = exported(runtime, False).manifest.runtimes[runtime].file
    (folder / file).write_bytes(b"rubbish")
    with pytest.raises(BundleError, match=rf"{file}|checksum"):
        Bundle.load(folder)
    with pytest.raises(BundleError, match=f"cannot load .*{file}"):
        choose_runtime(Bundle.load(folder, verify=False), runtime)
