"""The whole pipeline: fitted, saved, loaded, and the same numbers however it is called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastserve.config import TextConfig
from fastserve.text import TextPipeline
from fastserve.types import Encoded, TextPreferences

CHINESE = [
    "物流很快，质量不错！",
    "味道太差了，再也不来",
    "iPhone 15 的屏幕真好 http://t.cn/x",
    "",
    "好",
    "房间很大 服务也好😀",
] * 4
ENGLISH = ["The food wasn't good!", "Great service, 3.5 stars", "so so", "", "I don't like it at all"] * 4


def fitted(texts: list[str], encodings: tuple[str, ...] = ("tokens", "ngrams"), **config: object) -> TextPipeline:
    pipeline = TextPipeline.create(TextConfig.model_validate(config), encodings, preferences=TextPreferences())
    pipeline.fit(texts)
    return pipeline


def same(one: Encoded, other: Encoded) -> bool:
    def equal(name: str) -> bool:
        left, right = one[name], other[name]
        weights = (left.weights is None) == (right.weights is None) and (
            left.weights is None or right.weights is None or np.array_equal(left.weights, right.weights)
        )
        return weights and np.array_equal(left.values, right.values) and np.array_equal(left.offsets, right.offsets)

    return list(one) == list(other) and all(equal(name) for name in one)


@pytest.mark.parametrize("texts", [CHINESE, ENGLISH])
@pytest.mark.parametrize("segment", ["auto", "jieba", "character", "whitespace", "subword"])
def test_saved_and_loaded_gives_the_same_numbers(texts: list[str], segment: str, tmp_path: Path) -> None:
    pipeline = fitted(texts, segment=segment, min_count=1)
    state = json.loads(json.dumps(pipeline.save(tmp_path)))
    loaded = TextPipeline.load(tmp_path, state)
    assert same(loaded.encode(texts), pipeline.encode(texts))
    assert loaded.vocabulary == pipeline.vocabulary
    assert loaded.save(tmp_path / "again") == state


@pytest.mark.parametrize("segment", ["auto", "character", "subword"])
def test_single_equals_batched(segment: str) -> None:
    pipeline = fitted(CHINESE + ENGLISH, segment=segment, min_count=1)
    texts = [*CHINESE, *ENGLISH, "从未见过的词 never seen" * 300]
    batched = pipeline.encode(texts)
    for number, text in enumerate(texts):
        one = pipeline.encode([text])
        assert same(one, {name: rows.take(np.array([number])) for name, rows in batched.items()})
