"""A file of texts, and two models with tokenizers of their own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastserve.config import Columns, DataConfig
from fastserve.evaluation.corpus import compare_on_corpus, evaluate_corpus
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.text.writing_pipeline import WritingPipeline
from fastserve.types import Ragged

TEXTS = [f"{word} {number}" for number in range(20) for word in ("the cat sat", "on the mat", "床前明月光")]
CONFIG = DataConfig(columns=Columns(text="text"))


def writer(size: int, nats: float) -> Any:
    """A model that needs so many nats for each of its tokens, and reads 8 at a time."""
    tokenizer = LanguageTokenizer.train(TEXTS, size=size)

    def likelihoods(rows: Ragged) -> np.ndarray:
        counted = rows.lengths - 1
        return np.stack([counted * nats, counted], 1).astype(np.float32)

    network = SimpleNamespace(longest=8)
    return SimpleNamespace(pipeline=WritingPipeline(tokenizer, "text"), network=network, likelihoods=likelihoods)


@pytest.fixture
def address(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    return str(path)


def test_a_file_is_judged_by_its_documents(address: str, tmp_path: Path) -> None:
    report = evaluate_corpus(writer(300, 2.0), address, CONFIG, out=tmp_path)
    assert report.rows == len(TEXTS)
    assert report["loss"] == pytest.approx(2.0)
    assert report.details["totals"]["characters"] == sum(map(len, TEXTS))
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["task"] == "generation"


def test_models_with_other_tokens_are_compared_by_characters(address: str, tmp_path: Path) -> None:
    pair = (writer(262, 2.0), writer(300, 2.0))  # as many nats a token, but fewer tokens
    found = compare_on_corpus(pair, ("bytes", "words"), address, CONFIG, out=tmp_path)
    assert found.rows == len(TEXTS)
    assert found.verdict.startswith("words is better than bytes")
    assert "words is better" in (tmp_path / "report.html").read_text("utf-8")
