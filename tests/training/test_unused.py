"""What a task has no use for is refused."""

from __future__ import annotations

import pytest

from fastserve.config import load_config
from fastserve.errors import ConfigError
from fastserve.training import course


@pytest.mark.parametrize(
    "word",
    [
        "text.clean=none",
        "text.lowercase=false",
        "text.segment=jieba",
        "text.user_dictionary=words.txt",
        "text.min_count=5",
        "data.columns.label=label",
        "data.multi_label=true",
        "train.class_weights=balanced",
        "train.label_smoothing=0.1",
        "model.embeddings=vectors.txt",
    ],
)
def test_a_language_model_is_told_what_it_does_not_read(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0].replace(".", r"\.")):
        course.pick("generation").check(load_config(None, ["task=generation", word]))


@pytest.mark.parametrize("word", ["model.lora={}", "train.beta=0.5", "text.chat_template=x", "data.columns.prompt=a"])
def test_a_classifier_is_told_what_is_of_language_models(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0].replace(".", r"\.")):
        course.pick("classification").check(load_config(None, [word]))


def test_what_is_read_is_taken() -> None:
    words = ["task=generation", "text.segment=character", "text.max_length=64", "model.lora={}", "train.beta=0.5"]
    course.pick("generation").check(load_config(None, words))
