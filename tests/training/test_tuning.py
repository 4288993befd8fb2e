"""From a language model that writes to one that answers, and to one that answers as people like it: with adapters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

import fastserve as fs
from fastserve.bundle.runtimes.torch import build_network
from fastserve.errors import ConfigError
from fastserve.models.attention import PackedCausal

OPTIONS = {"layers": 2, "dim": 32, "heads": 4, "key_value_heads": 2}
COLORS = ["red", "green", "blue", "white"]
THINGS = ["hat", "cup", "car", "dog", "pen", "bag", "box", "bed"]


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def data_of(folder: Path, rows: list[dict[str, object]]) -> dict[str, object]:
    """The same few questions on both sides: that a tiny network knows them by heart is all that is asked of it."""
    held_out = lines(folder / "held_out.jsonl", rows[:40])
    return {"train": lines(folder / "rows.jsonl", rows), "validation": held_out, "duplicates": "keep"}


def asked(rows: int = 320) -> list[dict[str, object]]:
    draw = random.Random(1)
    pairs = [(draw.choice(COLORS), draw.choice(THINGS)) for _ in range(rows)]
    return [{"instruction": f"{color} {thing}", "input": "", "output": f"{color} it is"} for color, thing in pairs]


def liked(rows: int = 120) -> list[dict[str, object]]:
    """Polite answers are preferred."""
    draw = random.Random(2)
    pairs = [(draw.choice(COLORS), draw.choice(THINGS)) for _ in range(rows)]
    return [
        {"prompt": f"{color} {thing}", "chosen": f"please {color} it is", "rejected": f"{color} it is"}
        for color, thing in pairs
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model that answers instructions is published as `base`."""
    folder = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTSERVE_HOME", str(folder / "home"))
        fs.train(
            task="generation",
            name="base",
            data=data_of(folder, asked()),
            text={"vocabulary_size": 300, "max_length": 64},
            model={"network": "decoder-15m", "options": OPTIONS},
            epochs=12,
            early_stopping=0,
            batch=4,
            learning_rate=5e-3,
            precision="fp32",
        )
    return folder / "home"


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTSERVE_HOME", str(home))
    return home


def tune(folder: Path, rows: list[dict[str, object]], **settings: object) -> fs.Model:
    model = {"start": "base", "lora": {"rank": 4}, **settings.pop("model", {})}  # type: ignore[dict-item]
    return fs.train(task="generation", data=data_of(folder, rows), model=model, batch=2, **settings)


def logits(model: fs.Model) -> torch.Tensor:
    network = build_network(model.bundle).eval()
    ids = torch.tensor(model.writer.pipeline.ask("red cup")).long()
    with torch.inference_mode():
        return network.head(network.hidden(ids, PackedCausal(torch.tensor([0, len(ids)]))))  # type: ignore[operator]


def test_an_instructed_model_answers(at_home: Path) -> None:
    model = fs.load("base")
    assert model.write("green dog", temperature=0)[0].text == "green it is"
    assert model.write([[{"role": "user", "content": "red cup"}]], temperature=0)[0].text == "red it is"


def test_preferences_make_the_better_answer_the_likely_one(at_home: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tuned = tune(tmp_path, liked(), epochs=8, learning_rate=5e-3, model={"merge": True})
    report = tuned.bundle.report()
    assert report is not None
    wins = {check["name"]: check["share"]["value"] for check in report.details["checks"]}
    assert wins["Preferred wins"] > 0.9
    assert not (tuned.bundle.folder / "adapter").exists()
    assert tuned.bundle.manifest.lineage.parent == "base@1"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_adapters_are_kept_apart_and_change_nothing_else(at_home: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    rows = [{**row, "output": f"no {row['output']}"} for row in asked(80)]
    apart = tune(tmp_path, rows, epochs=2, learning_rate=1e-2)
    before, after = fs.load("base").bundle.weights(), apart.bundle.weights()
    assert all((before[name] == after[name]).all() for name in before.keys() | after.keys())
    base = transformers.AutoModelForCausalLM.from_pretrained(apart.bundle.folder, local_files_only=True)
    theirs = peft.PeftModel.from_pretrained(base, apart.bundle.folder / "adapter").eval()
    ids = torch.tensor(apart.writer.pipeline.ask("red cup"))[None].long()
    with torch.inference_mode():
        torch.testing.assert_close(logits(apart), theirs(ids).logits[0], atol=1e-5, rtol=1e-4)
    merged = tune(tmp_path, rows, epochs=2, learning_rate=1e-2, model={"merge": True})
    torch.testing.assert_close(logits(merged), logits(apart), atol=1e-4, rtol=1e-3)


def test_preferences_without_a_model_are_refused(tmp_path: Path, at_home: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.start"):
        fs.train(task="generation", data=lines(tmp_path / "liked.jsonl", liked(20)), network="decoder-15m")


def test_a_start_brings_its_own_network_and_tokenizer(tmp_path: Path, at_home: Path) -> None:
    data = lines(tmp_path / "asked.jsonl", asked(20))
    with pytest.raises(ConfigError, match="own network"):
        fs.train(task="generation", data=data, model={"start": "base", "network": "decoder-15m"})
    with pytest.raises(ConfigError, match="own tokenizer"):
        fs.train(task="generation", data=data, model={"start": "base"}, text={"vocabulary_size": 500})
    with pytest.raises(ConfigError, match="at most 64"):
        fs.train(task="generation", data=data, model={"start": "base"}, text={"max_length": 128})
