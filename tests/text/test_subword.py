"""Subword tokens: trained here, or from somebody's tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from fastserve.config import TextConfig
from fastserve.errors import ConfigError
from fastserve.text import TextPipeline
from fastserve.types import TextPreferences

TEXTS = ["物流很快，质量不错", "the quality is good", "不错不错", "good good good"] * 10


def bert_like(folder: Path) -> Path:
    """A tokenizer.json that pads, truncates and adds [CLS] and [SEP]."""
    vocabulary = {
        token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "food", "Good"])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(3)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def pipeline(config: dict[str, object], file: Path | None = None) -> TextPipeline:
    preferences = TextPreferences(tokenizer_file=str(file) if file else None, max_length=64)
    made = TextPipeline.create(TextConfig.model_validate(config), ["tokens"], preferences=preferences)
    made.fit(TEXTS)
    return made


def test_trained_tokenizer_knows_every_text() -> None:
    made = pipeline({"segment": "subword", "vocabulary_size": 400, "min_count": 1})
    assert made.vocabulary is not None
    assert made.vocabulary[:2] == ["[PAD]", "[UNK]"]
    assert made.vocabulary_size("tokens") == len(made.vocabulary) <= 400
    ids = made.encode(["😀 กา unseen"])["tokens"].values
    assert len(ids) > 0
    assert 1 not in ids


def test_loaded_tokenizer_keeps_special_tokens_and_our_length(tmp_path: Path) -> None:
    made = pipeline({"max_length": 4}, bert_like(tmp_path))
    assert made.segment == "subword"
    rows = made.encode(["the food the food the", "the", ""])["tokens"]
    assert [row.tolist() for row in (rows.values[:4], rows.values[4:7], rows.values[7:])] == [
        [2, 4, 5, 3],
        [2, 4, 3],
        [2, 3],
    ]


def test_tokenizer_of_weights_has_its_own_rule_of_case(tmp_path: Path) -> None:
    file = bert_like(tmp_path)
    assert pipeline({}, file).encode(["Good"])["tokens"].values.tolist() == [2, 6, 3]
    assert pipeline({"lowercase": True}, file).encode(["Good"])["tokens"].values.tolist() == [2, 1, 3]


def test_saved_tokenizer_is_a_plain_tokenizer_json(tmp_path: Path) -> None:
    made = pipeline({"segment": "subword", "vocabulary_size": 400})
    state = made.save(tmp_path)
    assert state["tokens"] == "tokenizer.json"
    assert json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["padding"] is None


@pytest.mark.parametrize("content", [None, "{}", "rubbish"])
def test_a_faulty_tokenizer_is_refused_by_name(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        pipeline({"segment": "subword", "tokenizer": str(path)})
