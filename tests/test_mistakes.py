"""What a person sees after a mistake: one clear message, the right exit code, never a traceback, nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = "label\ttext\n" + "".join(
    f"{'good' if i % 2 else 'bad'}\t{'fine' if i % 2 else 'poor'} thing {i}\n" for i in range(60)
)
TRAIN = ["train", "--network", "bag", "--data"]


def fastserve(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastserve", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def fails(code: int, *words: str, cwd: Path | None = None) -> str:
    """The message of a command that must fail in a civil way."""
    found = fastserve(*words, cwd=cwd)
    assert "Traceback" not in found.stderr, found.stderr
    assert found.returncode == code, found.stderr
    return found.stderr


def write(folder: Path, content: str | bytes, name: str = "data.tsv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


FILES: dict[str, tuple[str | bytes, str]] = {
    "an empty file": ("", "no row"),
    "a header alone": ("label\ttext\n", "no row"),
    "one class only": (
        "label\ttext\n" + "good\tfine thing\ngood\tnice thing\n" * 20,
        "classification needs at least two",
    ),
    "binary rubbish": (bytes(range(256)) * 40, "binary"),
    "labels that are missing": ("label\ttext\n" + "nan\tsome text\n\tother text\n" * 30, "label"),
    "too many bad rows": (GOOD + "good\n" * 30, "allowed are"),
    "no column of labels": ("text\nsome words\nother words\n", "label"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_cannot_be_trained_on(what: str, tmp_path: Path) -> None:
    content, expected = FILES[what]
    message = fails(2, *TRAIN, write(tmp_path, content))
    assert expected in message
    assert "data.tsv" in message


def test_invalid_utf_8_is_counted_and_skipped(tmp_path: Path) -> None:
    content = GOOD.encode() + b"good\t\xff\xfe broken\n"
    found = fastserve(*TRAIN, write(tmp_path, content), "data.bad_rows=1")
    assert found.returncode == 0, found.stderr
    message = fails(2, *TRAIN, write(tmp_path, content), "data.bad_rows=0")
    assert "row 62" in message
    assert "UTF-8" in message


def test_a_line_of_100_megabytes_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "long.tsv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(GOOD.encode())
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\ngood\tfine thing after it\n")
    assert fastserve(*TRAIN, str(path), "data.bad_rows=1").returncode == 0
    assert "line too long" in fails(2, *TRAIN, str(path), "data.bad_rows=0")


WORDS: dict[str, tuple[list[str], str]] = {
    "a file that is not there": (["train", "--data", "nothere.tsv"], "nothere.tsv"),
    "no data": (["train"], "--data FILE"),
    "an unknown key": (["train", "--data", "data.tsv", "train.epoch=3"], "did you mean 'epochs'"),
    "a wrong value": (["train", "--data", "data.tsv", "train.epochs=many"], "train.epochs"),
    "an unknown network": (["train", "--data", "data.tsv", "--network", "textcn"], "did you mean 'textcnn'"),
    "an unknown task": (["train", "--data", "data.tsv", "--task", "clasification"], "did you mean 'classification'"),
    "a wrong column": (["train", "--data", "data.tsv", "data.columns.text=texte"], "did you mean 'text'"),
    "an unknown option": (
        ["train", "--data", "data.tsv", "--network", "textcnn", "model.options.filtres=3"],
        "filters",
    ),
    "an unknown model": (["predict", "sentimant", "text"], "no model is called 'sentimant'"),
    "an unknown command": (["evalute"], "did you mean 'evaluate'"),
    "a bad name": (["train", "--data", "data.tsv", "--name", "../up"], "name"),
    "a bad segmenter": (["train", "--data", "data.tsv", "text.segment=jeiba"], "did you mean 'jieba'"),
}


@pytest.mark.parametrize("what", WORDS)
def test_words_that_are_wrong(what: str, tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    words, expected = WORDS[what]
    assert expected in fails(2, *words, cwd=tmp_path)


def test_a_configuration_with_a_mistake_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "task: classification\ndata: {train: [}\n", "job.yaml")
    assert "job.yaml line 2" in fails(2, "train", path)
    path = write(tmp_path, "tusk: classification\n", "job.yaml")
    assert "unknown key 'tusk'" in fails(2, "train", path)


def test_with_json_the_last_line_is_json_also_after_a_mistake(tmp_path: Path) -> None:
    found = fastserve("predict", "nothing", "text", "--json")
    assert json.loads(found.stdout.splitlines()[-1])["exit_code"] == 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    found = fastserve(*TRAIN, write(tmp_path, GOOD), "--name", "small", "--json")
    assert found.returncode == 0, found.stderr
    return Path(json.loads(found.stdout.splitlines()[-1])["folder"])


def flip_a_byte(folder: Path) -> str:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "model.safetensors is damaged"


def cut_short(folder: Path) -> str:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    return "model.safetensors is damaged"


def remove_the_manifest(folder: Path) -> str:
    (folder / "fastserve.json").unlink()
    return "fastserve.json is missing"


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, remove_the_manifest])
def test_a_damaged_model_is_named_by_its_file(damage: Callable[[Path], str], model: Path) -> None:
    expected = damage(model)
    assert expected in fails(1, "predict", "small", "text")
    assert expected in fails(1, "models", "verify")
    assert expected in fails(1, "serve", "small", "--port", "0")


@pytest.mark.parametrize("size", ["16k", "100k"])
def test_a_full_disk_is_said_and_nothing_is_half_written(size: str, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small file system that can be filled")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        environment = {**os.environ, "FASTSERVE_HOME": str(small)}
        command = [sys.executable, "-m", "fastserve", *TRAIN, write(tmp_path, GOOD), "--name", "full"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert found.returncode == 1, found.stderr
        assert "disk is full" in found.stderr
        assert "Traceback" not in found.stderr
        assert not list(small.glob("models/full/1"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
