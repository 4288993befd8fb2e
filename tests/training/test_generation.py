"""A language model from a file to a folder that the rest of the world loads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import fastserve as fs
from fastserve.errors import ConfigError, DataError
from fastserve.types import Message, PlainText

OPTIONS = {"layers": 2, "dim": 32, "heads": 4, "key_value_heads": 2}
WORDS = ["red", "green", "blue", "white"]


def write_prompts(path: Path, rows: int = 300) -> Path:
    """After a color and a number the color comes so many times: what a tiny network can learn."""
    draw = random.Random(0)
    lines = []
    for _ in range(rows):
        word, count = draw.choice(WORDS), draw.randint(1, 3)
        lines.append({"ask": f"{word} {count}", "say": " ".join([word] * count)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> fs.Model:
    folder = tmp_path_factory.mktemp("generation")
    patch = pytest.MonkeyPatch()
    patch.setenv("FASTSERVE_HOME", str(folder / "home"))
    try:
        return fs.train(
            task="generation",
            data={
                "train": str(write_prompts(folder / "asked.jsonl")),
                "columns": {"prompt": "ask", "completion": "say"},
                "validation": 0.2,
                "duplicates": "keep",
            },
            text={"vocabulary_size": 300, "max_length": 32},
            model={"network": "decoder-15m", "options": OPTIONS},
            epochs=20,
            batch=8,
            learning_rate=1e-2,
        )
    finally:
        patch.undo()


def test_it_has_learned_what_the_data_says(trained: fs.Model) -> None:
    report = trained.bundle.report()
    assert report is not None
    assert report["perplexity"] < 2
    assert trained.write("blue 3", temperature=0)[0].text == "blue blue blue"
    assert [one.text for one in trained.write(["red 1", "green 2"], temperature=0)] == ["red", "green green"]


def test_the_folder_loads_in_transformers_and_gives_the_same_logits(trained: fs.Model) -> None:
    transformers = pytest.importorskip("transformers")
    folder = trained.bundle.folder
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = trained.writer.pipeline.ask("white 2")
    assert tokenizer("<|begin|>white 2\n", add_special_tokens=False)["input_ids"] == ids.tolist()
    from fastserve.models.attention import PackedCausal

    with torch.inference_mode():
        expected = theirs(torch.tensor(ids)[None].long()).logits[0]
        network = trained.writer.network
        found = network.head(network.hidden(torch.tensor(ids).long(), PackedCausal(torch.tensor([0, len(ids)]))))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_loaded_model_gives_the_likelihoods_that_evaluation_gave(trained: fs.Model) -> None:
    rows = trained.bundle.manifest.parity
    assert rows
    found = trained.writer.nats([row.text for row in rows])
    np.testing.assert_allclose(found, [row.scores[0] for row in rows], atol=1e-4)


def test_evaluation_of_a_file_gives_the_figures_of_the_run(trained: fs.Model, tmp_path: Path) -> None:
    columns = {"prompt": "ask", "completion": "say"}
    report = trained.evaluate(write_prompts(tmp_path / "other.jsonl", 50), out=tmp_path / "out", columns=columns)
    assert report["perplexity"] < 2
    assert (tmp_path / "out" / "report.html").is_file()


def test_it_gives_texts_and_no_labels(trained: fs.Model) -> None:
    with pytest.raises(ConfigError, match=r"write\(\)"):
        trained.predict(["red 1"])
    with pytest.raises(ConfigError, match="chat template"):
        trained.write([[Message("user", "red 1")]])
    with pytest.raises(ConfigError, match="temperature"):
        trained.write("red 1", temperatur=0)


def test_plain_text_is_learned_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path / "home"))
    path = tmp_path / "abc.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz\n" * 4000, "utf-8")
    model = fs.train(
        task="generation",
        data=str(path),
        text={"vocabulary_size": 270, "max_length": 64},
        model={"network": "decoder-15m", "options": OPTIONS},
        epochs=1,
        batch=16,
        learning_rate=1e-2,
    )
    report = model.bundle.report()
    assert report is not None
    assert report["bits_per_character"] < 1.0
    assert model.write("abcdefgh", temperature=0, max_tokens=4, stop=["n"])[0].text.startswith("i")
    assert (
        model.writer.nats(["abcdefghijklmnopqrstuvwxyz\n"])[0] < model.writer.nats(["zyxwvutsrqponmlkjihgfedcba\n"])[0]
    )
    assert len(list(model.writer.pipeline.encode_texts([PlainText("abc")]))) == 1


def test_a_network_that_labels_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="writes"):
        fs.train(task="generation", data=str(write_prompts(tmp_path / "asked.jsonl", 10)), network="bag")


def test_samples_stand_in_the_events_and_in_the_report(trained: fs.Model) -> None:
    from fastserve.training.watchers import read_events

    events = [event for event in read_events(trained.bundle.folder.parent / "events.jsonl") if event.get("samples")]
    assert {sample["prompt"] for sample in events[-1]["samples"]} <= {f"{w} {n}\n" for w in WORDS for n in (1, 2, 3)}
    report = trained.bundle.report()
    assert report is not None
    assert report.details["samples"]


def test_what_it_writes_is_checked_by_questions(trained: fs.Model, tmp_path: Path) -> None:
    questions = [{"question": f"{word} 2", "choices": WORDS, "answer": word} for word in WORDS]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions), "utf-8")
    data = write_prompts(tmp_path / "other.jsonl", 30)
    report = trained.evaluate(data, questions=str(tmp_path / "questions.jsonl"))  # columns as in training
    shares = {check["name"]: check["share"]["value"] for check in report.details["checks"]}
    assert shares["Multiple choice"] == 1.0
    with pytest.raises(DataError, match="五言绝句"):
        trained.evaluate(data, form="prompt")
