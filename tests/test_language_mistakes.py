"""What a person sees after a mistake with a language model: one clear message, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from test_mistakes import GOOD, fails, fastserve, write

TINY = "model.options.layers=1 model.options.dim=16 model.options.heads=2 text.vocabulary_size=300 text.max_length=64"
TRAIN = ["train", "--task", "generation", "--network", "decoder-15m", *TINY.split()]
TRAIN += ["train.epochs=1", "train.batch=8", "data.duplicates=keep", "--data"]
TUNE = ["train", "--task", "generation", "--data"]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def chat(*said: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def chats(*odd: tuple[str, str]) -> str:
    """Sound conversations, the seventh of which is replaced where `odd` is given."""
    rows = [chat(("user", f"how many is {n}"), ("assistant", "many " * (n % 5 + 1))) for n in range(40)]
    rows[6] = chat(*odd) if odd else rows[6]
    return lines(rows)


PAIRS = lines([{"prompt": f"what is {n}", "chosen": "a number", "rejected": "no"} for n in range(40)])
CHATS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "the assistant first": ([("assistant", "a"), ("user", "b"), ("assistant", "c")], "of the assistant at the begin"),
    "two questions": ([("user", "a"), ("user", "b"), ("assistant", "c")], "expected assistant"),
    "no answer": ([("user", "a")], "the last message is of the user"),
    "an unknown role": ([("user", "a"), ("robot", "b")], "unknown role"),
    "an empty answer": ([("user", "a"), ("assistant", " ")], "empty answer"),
    "an empty question": ([("user", ""), ("assistant", "b")], "empty prompt"),
}


@pytest.mark.parametrize("what", CHATS)
def test_a_chat_that_cannot_be_learned_is_named_by_its_row(what: str, tmp_path: Path) -> None:
    odd, expected = CHATS[what]
    message = fails(2, *TRAIN, write(tmp_path, chats(*odd), "chats.jsonl"), "data.bad_rows=0")
    assert "chats.jsonl row 7" in message
    assert expected in message


TEMPLATES = {
    "an error": ("{% for m in messages %}{{ m.content }", "the chat template that was given, line 1"),
    "an unknown name": ("{{ message.content }}", "'message' is undefined"),
    "an escape": ("{{ messages.__class__.__mro__ }}", "templates may not use '__class__'"),
    "no end": ("{% for m in messages %}{% for i in range(99999999) %}{{ m.content }}{% endfor %}{% endfor %}", "range"),
    "no answers": ("{{ messages[0].content }}", "leaves out what the assistant says"),
}


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_chat_template_that_cannot_be_used(what: str, tmp_path: Path) -> None:
    template, expected = TEMPLATES[what]
    words = [*TRAIN, write(tmp_path, chats(), "chats.jsonl")]
    file = write(tmp_path, template, "template.jinja")
    for wanted in (template, file):
        assert expected.lower() in fails(2, *words, f"text.chat_template={wanted}").lower()


WORDS: dict[str, tuple[list[str], str]] = {
    "preferences without a start": ([*TRAIN, "pairs.jsonl"], "model.start"),
    "a start that is not there": ([*TUNE, "pairs.jsonl", "model.start=sentimant"], "no model is called 'sentimant'"),
    "a folder that is none": ([*TUNE, "pairs.jsonl", "model.start=./nothere"], "nothere"),
    "a tokenizer without an end": (
        [*TRAIN, "chats.jsonl", "text.vocabulary_size=auto", "text.tokenizer=tokenizer"],
        "the token that ends a text (eos)",
    ),
    "a tokenizer that is not there": (
        [*TRAIN, "chats.jsonl", "text.vocabulary_size=auto", "text.tokenizer=tokeniser"],
        "tokeniser",
    ),
    "one document": ([*TRAIN, "one.jsonl"], "too few to hold some out"),
}


@pytest.mark.parametrize("what", WORDS)
def test_words_that_are_wrong(what: str, tmp_path: Path) -> None:
    write(tmp_path, PAIRS, "pairs.jsonl")
    write(tmp_path, chats(), "chats.jsonl")
    write(tmp_path, lines([{"text": "only this"}]), "one.jsonl")
    write_tokenizer(tmp_path / "tokenizer")
    words, expected = WORDS[what]
    assert expected in fails(2, *words, cwd=tmp_path)


def write_tokenizer(folder: Path) -> None:
    """One that says nowhere what ends a text."""
    from tokenizers import Tokenizer, models

    folder.mkdir()
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")


def test_a_model_that_labels_is_none_that_writes(tmp_path: Path) -> None:
    labels = [*TUNE[:1], "--network", "bag", "--name", "labels", "--data", write(tmp_path, GOOD)]
    assert fastserve(*labels).returncode == 0
    assert "which gives labels" in fails(2, "chat", "labels")
    assert "gives labels" in fails(2, "predict", "labels", "text", "-s", "temperature=1")
    pairs = write(tmp_path, PAIRS, "pairs.jsonl")
    assert "is a model for classification" in fails(2, *TUNE, pairs, "model.start=labels")


def test_what_does_not_fit_the_context_is_told_and_a_model_is_made(tmp_path: Path) -> None:
    long = [{"text": f"number {n}"} for n in range(40)]
    long[6] = {"text": "word " * 400}
    found = fastserve(*TRAIN, write(tmp_path, lines(long), "long.jsonl"), "data.validation=0.1", "--name", "writer")
    assert found.returncode == 0, found.stderr
    assert "longer than the context of 64 tokens and become several rows (rows 7)" in found.stderr
    answer = chats(("user", "a"), ("assistant", " ".join(map(str, range(400)))))
    found = fastserve(*TRAIN, write(tmp_path, answer, "answers.jsonl"))
    assert found.returncode == 0, found.stderr
    assert "do not fit the context of 64 tokens behind their prompts and are cut (rows 7)" in found.stderr
    assert "did you mean 'temperature'" in fails(2, "predict", "writer", "text", "-s", "tempature=1")
    assert "valid number" in fails(2, "predict", "writer", "text", "-s", "temperature=hot")
    assert "is of the task generation and gives no labels" in fails(2, "export", "writer", "--runtime", "onnx")
    assert "needs vLLM" in fails(2, "serve", "writer", "--engine", "vllm")
    assert "policy" in fails(2, "serve", "writer", "--policy", "bost")


def test_a_disk_that_fills_while_shards_are_written_is_said(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small file system that can be filled")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    data = write(tmp_path, "abcdefghijklmnopqrstuvwxyz0123456789\n" * 20_000, "text.txt")
    try:
        command = [sys.executable, "-m", "fastserve", *TRAIN, data]
        environment = {**os.environ, "FASTSERVE_HOME": str(small)}
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert found.returncode == 1, found.stderr
        assert "disk is full" in found.stderr
        assert "Traceback" not in found.stderr
        assert list(small.glob("runs/*/data/fitted")), "it was full while rows were written"
        assert not list(small.glob("runs/*/data/train/0*")), "nothing is half written"
    finally:
        subprocess.run(["umount", str(small)], check=True)
