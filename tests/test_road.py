"""The whole road as a person walks it: real commands in real processes, from a file to an answer over HTTP."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TRAIN, TEST = str(EXAMPLES / "reviews.tsv"), str(EXAMPLES / "reviews_test.tsv")


def fastserve(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastserve", *words]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)
    if check:
        assert found.returncode == 0, found.stderr
    return found


def result(*words: str, **options: Any) -> dict[str, Any]:
    """The last line of standard output of a command with --json."""
    lines = fastserve(*words, "--json", **options).stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home: Path) -> dict[str, Any]:
    environment = {**os.environ, "FASTSERVE_HOME": str(home)}
    return result("train", "--data", TRAIN, "--task", "classification", "--name", "reviews", env=environment)


@pytest.fixture(autouse=True)
def use_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_HOME", str(home))


def test_train_evaluate_predict(trained: dict[str, Any], tmp_path: Path) -> None:
    assert trained["model"] == "reviews@1"
    assert trained["labels"] == ["negative", "positive"]
    report = result("evaluate", "reviews", "--data", TEST, "--out", str(tmp_path))
    assert report["metrics"]["accuracy"]["value"] > 0.75
    assert {"language"} == set(report["details"]["slices"])
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")
    answers = result("predict", "reviews", "质量很好，非常满意", "broke after two days, terrible")["predictions"]
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    assert sum(answers[0]["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_guessed_columns_are_said_once(tmp_path: Path) -> None:
    environment = {**os.environ, "FASTSERVE_HOME": str(tmp_path)}
    said = fastserve("train", "--data", TRAIN, "--network", "bag", "train.epochs=1", env=environment).stderr
    assert said.count("guessed") == 1


def test_predict_reads_files_and_standard_input(trained: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    assert result("predict", "reviews", "--data", TEST, "--out", str(out))["rows"] == 120
    assert len(out.read_text("utf-8").splitlines()) == 120
    lines = fastserve("predict", "reviews", "--data", "-", input="很好\nawful\n").stdout.splitlines()
    assert len(lines) == 2


def test_the_python_verbs(trained: dict[str, Any], tmp_path: Path) -> None:
    import fastserve as fs

    model = fs.load("reviews@1")
    prediction = model.predict(["物流很快，质量不错"])[0]
    assert prediction.label == "positive"
    assert model.evaluate(TEST)["accuracy"] > 0.75
    assert fs.load(model.save(tmp_path / "copy")).predict(["物流很快，质量不错"]) == [prediction]


def test_the_run_leaves_events_and_tensorboard_files(trained: dict[str, Any], home: Path) -> None:
    run = next((home / "runs").iterdir())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "finished"
    assert {"step", "evaluation"} <= {event["event"] for event in events}
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(trained: dict[str, Any]) -> None:
    def weights(*words: str) -> dict[str, np.ndarray]:
        fixed = ["--network", "textcnn", "train.resume=never", "train.epochs=2"]
        folder = result("train", "--data", TRAIN, *fixed, *words)["folder"]
        return load_file(Path(folder) / "model.safetensors")

    first, second, other = weights(), weights(), weights("train.seed=1")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.fixture
def server(trained: dict[str, Any]) -> Iterator[str]:
    command = [sys.executable, "-m", "fastserve", "serve", "reviews", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(word for line in process.stderr for word in line.split() if word.startswith("http://"))
        next(line for line in process.stderr if '"event":"serving"' in line)  # until then the answer is 503
        yield address.rstrip("/")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_the_server_answers_as_the_evaluated_model(server: str) -> None:
    import fastserve as fs

    texts = ["质量很好，非常满意", "it broke after two days"]
    request = urllib.request.Request(
        f"{server}/v1/models/reviews:predict",
        json.dumps({"instances": texts}).encode(),
        {"Content-Type": "application/json"},
    )
    found = json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
    for answer, expected in zip(found, fs.load("reviews").predict(texts), strict=True):
        assert answer["label"] == expected.label
        assert answer["score"] == pytest.approx(expected.score, abs=1e-4)


KILLED = ["train", "--data", TRAIN, "--network", "textcnn", "train.checkpoint_seconds=0", "train.epochs=12"]


@pytest.mark.heavy
def test_kill_9_at_random_moments_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def environment(name: str) -> dict[str, str]:
        return {**os.environ, "FASTSERVE_HOME": str(tmp_path / name)}

    whole = load_file(Path(result(*KILLED, env=environment("whole"))["folder"]) / "model.safetensors")
    share, longest, kills = random.Random(0), 9.0, 0
    while kills < 5:
        process = subprocess.Popen([sys.executable, "-m", "fastserve", *KILLED], env=environment("cut"))
        try:
            process.wait(timeout=share.uniform(0.25, 1) * longest)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        if kills:
            break
        shutil.rmtree(tmp_path / "cut")  # a fast machine: it was done before the first kill
        longest /= 2
    found = result(*KILLED, env=environment("cut"))
    cut = load_file(Path(found["folder"]) / "model.safetensors")
    assert cut.keys() == whole.keys()
    assert all(np.array_equal(cut[name], whole[name]) for name in whole)
    assert len(list((tmp_path / "cut" / "runs").iterdir())) <= 2


def test_a_second_process_does_not_take_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path))
    words = ["train", "--data", TRAIN, "--network", "textcnn", "train.epochs=500", "train.early_stopping=0"]
    first = subprocess.Popen([sys.executable, "-m", "fastserve", *words], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/*/events.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        found = fastserve(*words, check=False)
        assert found.returncode == 1
        assert "going on in another process" in found.stderr
    finally:
        first.kill()
        first.wait()
