"""A language model's run that is killed goes on by the same command to the same weights."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import assert_same, checkpoint, ended, start, wait_for
from safetensors.torch import load_file
from test_resume import seen

TINY = ["layers=2", "dim=32", "heads=4", "key_value_heads=2"]
TRAIN = [
    "epochs=4",
    "batch=4",
    "learning_rate=5e-3",
    "early_stopping=0",
    "keep=last",
    "checkpoint_seconds=0",
    "threads=1",
]
RESUMED = re.compile(r"resumed at step (\d+) of (\d+)")
STEPS = 30
"""At least so many have all runs here."""
Weights = dict[str, torch.Tensor]
Command = list[str]


def command(data: Path, *more: str, network: str = "decoder-15m") -> Command:
    model = [] if any(word.startswith("model.start") for word in more) else ["--network", network, *new_model()]
    settings = [f"train.{word}" for word in TRAIN]
    return ["train", "--task", "generation", "--data", str(data), "data.duplicates=keep", *model, *settings, *more]


def new_model() -> list[str]:
    return [*(f"model.options.{word}" for word in TINY), "text.vocabulary_size=300", "text.max_length=64"]


def prompts(folder: Path) -> Path:
    """Rows that are all different, of unequal lengths."""
    rows = [{"prompt": f"left{row // 20} right{row % 20}", "completion": "yes " * (row % 7 + 1)} for row in range(300)]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def text(folder: Path) -> Path:
    path, draw = folder / "text.txt", random.Random(0)
    path.write_text("".join(f"line {draw.randrange(1000)} of a text\n" for _ in range(5000)), "utf-8")
    return path


def weights_of(out: str) -> Weights:
    """Of the model, and of its adapters where there are any."""
    folder = Path(json.loads(out.splitlines()[-1])["folder"])
    adapters = folder / "adapter/adapter_model.safetensors"
    return load_file(folder / "model.safetensors") | (load_file(adapters) if adapters.exists() else {})


def killed(home: Path, words: Command, notes: Path | None = None) -> tuple[Weights, int]:
    """The weights that the second command ends with, and at which step it went on, after the first one was killed.

    notes: where the second one's rows are noted.
    """
    at = random.randrange(2, STEPS - 5)
    first = start(home, *words, env={"SEEN": str(home)})
    wait_for(lambda: any(int(path.name) >= at for path in checkpoint(home)()), first)
    first.kill()
    first.communicate()
    out, said = ended(start(home, *words, env={"SEEN": str(notes or home)}), 0)
    found = RESUMED.search(said)
    assert found is not None, said
    assert at <= int(found[1]) < int(found[2])
    return weights_of(out), int(found[1])


def undisturbed(home: Path, words: Command) -> Weights:
    home.mkdir(exist_ok=True)
    return weights_of(ended(start(home, *words, env={"SEEN": str(home)}), 0)[0])


def assert_goes_on(folder: Path, words: Command) -> None:
    """To the weights of a run that nobody killed, bit for bit."""
    weights, step = killed(folder / "killed", words)
    print(f"killed and resumed at step {step}")
    assert_same(weights, undisturbed(folder / "whole", words))


@pytest.mark.parametrize("data", [text, prompts])
def test_one_worker_goes_on(data: Callable[[Path], Path], tmp_path: Path) -> None:
    assert_goes_on(tmp_path, command(data(tmp_path)))


@pytest.mark.heavy
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_go_on(strategy: str, tmp_path: Path) -> None:
    assert_goes_on(tmp_path, command(prompts(tmp_path), "--workers", "2", f"distributed.strategy={strategy}"))


@pytest.mark.heavy
def test_workers_that_train_alone_go_on_in_the_same_order(tmp_path: Path) -> None:
    shared = ["--workers", "2", "distributed.strategy=diloco", "distributed.options.inner_steps=2"]
    words = command(prompts(tmp_path), *shared, network="seen_decoder:SeenDecoder")
    before, after, whole = tmp_path / "killed", tmp_path / "after", tmp_path / "whole"
    before.mkdir()
    after.mkdir()
    weights, step = killed(before, words, after)
    undisturbed(whole, words)
    assert all(bool(value.isfinite().all()) for value in weights.values())
    expected, first, then = seen(whole), seen(before), seen(after, step)
    assert max(then) == max(expected)
    assert all(sorted((then if at > step else first)[at]) == sorted(rows) for at, rows in expected.items())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that is tuned."""
    folder = tmp_path_factory.mktemp("base")
    words = command(prompts(folder), "train.epochs=1")
    return Path(json.loads(ended(start(folder, *words), 0)[0].splitlines()[-1])["folder"])


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_adapters_alone_are_trained_and_go_on(base: Path, workers: list[str], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    words = command(prompts(tmp_path), f"model.start={base}", "model.lora.rank=4", *workers)
    weights, _ = killed(tmp_path / "killed", words)
    assert_same(weights, undisturbed(tmp_path / "whole", words))
    before = load_file(base / "model.safetensors")
    assert_same({name: weights[name] for name in before}, before)
    assert any(value.any() for name, value in weights.items() if ".lora_B." in name), "which begin with 0"
