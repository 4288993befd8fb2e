"""Texts without labels to an encoder, and a classifier that begins with it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

import fastserve as fs
from fastserve.errors import ConfigError
from fastserve.training.masked.prepare import load

OPTIONS = {"dim": 32, "layers": 1, "heads": 2, "feedforward": 64, "dropout": 0.0}
KINDS = {"fruit": ["apple", "pear", "plum", "cherry"], "tool": ["hammer", "saw", "drill", "pliers"]}


def sentence(draw: random.Random, kind: str) -> str:
    """Words of one kind: what hidden words can be told by."""
    return " ".join(draw.choice(KINDS[kind]) for _ in range(8))


def write_texts(path: Path, rows: int = 300) -> Path:
    draw = random.Random(0)
    kinds = sorted(KINDS)
    path.write_text(
        "".join(json.dumps({"text": sentence(draw, draw.choice(kinds))}) + "\n" for _ in range(rows)), "utf-8"
    )
    return path


def write_labelled(path: Path, rows: int = 60) -> Path:
    draw = random.Random(1)
    lines = ["text\tlabel"]
    for _ in range(rows):
        kind = draw.choice(sorted(KINDS))
        lines.append(f"{sentence(draw, kind)}\t{kind}")
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def pretrain(folder: Path, **settings: object) -> fs.Model:
    return fs.train(
        task="masked",
        data={"train": str(write_texts(folder / "texts.jsonl")), "duplicates": "keep"},
        text={"segment": "whitespace"},
        model={"options": OPTIONS},
        **{"epochs": 15, "batch": 8, "learning_rate": 1e-2, "precision": "fp32", **settings},
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> fs.Model:
    folder = tmp_path_factory.mktemp("masked")
    patch = pytest.MonkeyPatch()
    patch.setenv("FASTSERVE_HOME", str(folder / "home"))
    try:
        return pretrain(folder, name="base")
    finally:
        patch.undo()


@pytest.fixture
def home(pretrained: fs.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pretrained model is published."""
    assert pretrained.version is not None
    monkeypatch.setenv("FASTSERVE_HOME", str(pretrained.version.path.parents[2]))


def test_it_has_learned_which_words_stand_together(pretrained: fs.Model) -> None:
    report = pretrained.bundle.report()
    assert report is not None
    assert 3.5 < report["perplexity"] < 6.5, "four words of eight are possible at each place"
    assert pretrained.labels == []
    assert "model.start=base" in (pretrained.bundle.folder / "card.md").read_text("utf-8")
    assert "hidden tokens" in (pretrained.bundle.folder / "report.html").read_text("utf-8")
    assert "hidden tokens" in pretrained.describe()


def test_the_same_command_gives_the_same_weights(pretrained: fs.Model, tmp_path: Path) -> None:
    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.setenv("FASTSERVE_HOME", str(tmp_path / "home"))
        again = pretrain(tmp_path)
    weights = again.bundle.weights()
    assert all(np.array_equal(value, weights[name]) for name, value in pretrained.bundle.weights().items())


def test_it_gives_no_labels_and_says_what_it_is_for(pretrained: fs.Model) -> None:
    with pytest.raises(ConfigError, match=r"model\.start"):
        pretrained.predict(["apple"])


def test_a_long_text_becomes_several_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path / "home"))
    path = tmp_path / "long.txt"
    path.write_text("apple pear plum cherry\n" * 3000, "utf-8")
    fs.train(
        task="masked",
        data=str(path),
        text={"segment": "whitespace", "max_length": 50},
        model={"options": OPTIONS},
        max_steps=2,
    )
    (data,) = (tmp_path / "home" / "runs").glob("*/data")
    prepared = load(data)
    lengths = np.concatenate([prepared.train.lengths("tokens"), prepared.validation.lengths("tokens")])
    assert lengths.sum() == 12_000
    assert lengths.max() == prepared.pipeline.max_length == 50
    assert (lengths == 50).mean() > 0.9


def test_a_network_without_a_masked_form_is_refused_by_name(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", 10)
    with pytest.raises(ConfigError, match="'bag' has no form"):
        fs.train(task="masked", data=str(path), network="bag")
    with pytest.raises(ConfigError, match="random weights"):
        fs.train(task="masked", data=str(path), model={"start": "base"})


def classify(data: Path, start: str, **settings: object) -> fs.Model:
    return fs.train(
        task="classification",
        data={"train": str(data), "validation": 0.3, "duplicates": "keep"},
        **{"epochs": 3, "batch": 8, "model": {"start": start}, **settings},
    )


@pytest.mark.usefixtures("home")
def test_a_classifier_begins_with_its_text_steps_and_weights(
    pretrained: fs.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        model = classify(write_labelled(tmp_path / "labelled.tsv"), "base", learning_rate=1e-9)
    before, after = pretrained.bundle.weights(), model.bundle.weights()
    kept = [name for name in after if not name.startswith("output.")]
    assert len(kept) == len(after) - 2
    for name in kept:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    numbers = sum(before[name].size for name in kept)
    assert f"took {len(kept)} weights ({numbers:,} numbers) from base@1; 2 of the output" in caplog.text
    manifest = model.bundle.manifest
    assert manifest.lineage.parent == "base@1"
    assert manifest.network.name == "transformer"
    assert manifest.network.options == OPTIONS
    assert manifest.text == pretrained.bundle.manifest.text
    assert fs.load(model.bundle.folder).predictor.check_parity() == []


@pytest.mark.usefixtures("home")
def test_a_classifier_learns_from_few_rows_and_can_be_gone_on_from(tmp_path: Path) -> None:
    data = write_labelled(tmp_path / "labelled.tsv", 40)
    first = classify(data, "base", learning_rate=1e-2)
    report = first.bundle.report()
    assert report is not None
    assert report["accuracy"] == 1
    again = classify(data, str(first.bundle.folder), learning_rate=1e-9)
    before, after = first.bundle.weights(), again.bundle.weights()
    for name, value in before.items():  # the labels are the same, and so is their layer
        np.testing.assert_allclose(after[name], value, atol=1e-6)
    assert again.bundle.manifest.lineage.parent == str(first.bundle.folder)
    other = tmp_path / "other.tsv"
    other.write_text(data.read_text("utf-8").replace("\ttool", "\tthing"), "utf-8")
    third = classify(other, str(first.bundle.folder), learning_rate=1e-9)
    assert third.labels == ["fruit", "thing"]
    assert not np.allclose(third.bundle.weights()["output.weight"], before["output.weight"])
    np.testing.assert_allclose(third.bundle.weights()["embedding"], before["embedding"], atol=1e-6)


@pytest.mark.usefixtures("home")
def test_what_would_change_the_start_is_refused(tmp_path: Path) -> None:
    data = write_labelled(tmp_path / "labelled.tsv", 20)
    with pytest.raises(ConfigError, match=r"text\.max_length=3 would change the text steps"):
        classify(data, "base", text={"max_length": 3})
    with pytest.raises(ConfigError, match=r"'blocks\.1"):
        classify(data, "base", model={"start": "base", "options": {"layers": 2}})
    with pytest.raises(ConfigError, match="brings its own network"):
        classify(data, "base", model={"start": "base", "network": "bag"})
    with pytest.raises(ConfigError, match="embeddings"):
        classify(data, "base", model={"start": "base", "embeddings": "vectors.txt"})
    fs.train(task="classification", data=str(data), network="linear", name="table", epochs=1)
    other = tmp_path / "other.tsv"
    other.write_text(data.read_text("utf-8").replace("\ttool", "\tthing"), "utf-8")
    with pytest.raises(ConfigError, match="no weights but those of its labels"):
        classify(other, "table")
