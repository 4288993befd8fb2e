"""The whole pipeline: fitted, saved, loaded, and the same numbers however it is called."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fastserve.config import TextConfig
from fastserve.errors import BundleError, ConfigError, WorkError
from fastserve.text import TextPipeline
from fastserve.text.segment import Segmenter, cut_all
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


@pytest.mark.parametrize("segment", ["auto", "subword"])
def test_processes_give_the_same_blocks_in_order(segment: str) -> None:
    pipeline = fitted(CHINESE + ENGLISH, segment=segment, min_count=1)
    texts = [f"{CHINESE[number % 24]} {number}" for number in range(7_000)]
    blocks = [texts[:2_500], [], texts[2_500:2_501], texts[2_501:6_900], texts[6_900:]]
    one = list(pipeline.encode_blocks(iter(blocks), workers=1))
    two = list(pipeline.encode_blocks(iter(blocks), workers=2))
    assert len(one) == len(two) == 5
    assert all(same(left, right) for left, right in zip(one, two, strict=True))
    assert all(len(encoded["ngrams"]) == len(block) for encoded, block in zip(two, blocks, strict=True))


def test_few_texts_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("processes were started")

    pipeline = fitted(CHINESE)
    monkeypatch.setattr("fastserve.text.pipeline.spread", refuse)
    assert len(list(pipeline.encode_blocks([CHINESE] * 10, workers=2))) == 10


def test_vocabulary_is_the_same_from_one_process_and_two() -> None:
    texts = [f"{CHINESE[number % 24]} 第{number % 700}号" for number in range(9_000)]
    pipelines = [fitted([], segment="jieba") for _ in range(2)]
    for workers, pipeline in enumerate(pipelines, start=1):
        pipeline.fit(iter(texts), workers=workers)
    assert pipelines[0].vocabulary == pipelines[1].vocabulary
    assert pipelines[0].vocabulary_size("tokens") > 100


@pytest.mark.parametrize(
    ("texts", "preferred", "asked", "decided"),
    [
        (CHINESE, "jieba", "auto", "jieba"),
        (CHINESE, "character", "auto", "character"),
        (ENGLISH, "character", "auto", "whitespace"),
        (ENGLISH, "subword", "auto", "subword"),
        (ENGLISH, "jieba", "jieba", "jieba"),
    ],
)
def test_auto_segmentation(texts: list[str], preferred: str, asked: str, decided: str) -> None:
    preferences = TextPreferences(segment=preferred)
    pipeline = TextPipeline.create(TextConfig(segment=asked), ["tokens"], preferences=preferences)
    pipeline.fit(texts)
    assert pipeline.segment == decided


def test_auto_length_is_the_99th_percentile_within_the_preferred() -> None:
    texts = ["a b c"] * 990 + ["a " * 50] * 10 + ["a " * 900] * 5
    assert fitted(texts).max_length == 50
    assert fitted(["a " * 900] * 10).max_length == 512
    assert fitted([]).max_length == 1
    pipeline = fitted(texts, max_length=2)
    assert pipeline.encode(["a b c a b"])["tokens"].lengths.tolist() == [2]


def test_user_dictionary_travels_with_the_model(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("永和大王\nIPhone 15 Pro 3\n", "utf-8")
    pipeline = fitted(CHINESE, user_dictionary=str(words))
    state = pipeline.save(tmp_path)
    words.unlink()
    loaded = TextPipeline.load(tmp_path, state)
    assert loaded.segments(["去永和大王买iPhone  15 PRO"]) == [["去", "永和大王", "买", "iphone 15 pro"]]


def test_another_version_of_the_segmenter_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = fitted(CHINESE).save(tmp_path)
    TextPipeline.load(tmp_path, state)
    assert not caplog.records
    state["libraries"]["rjieba"] = "0.0.1"
    TextPipeline.load(tmp_path, state)
    assert "rjieba 0.0.1" in caplog.text


def test_damaged_and_foreign_states_are_refused(tmp_path: Path) -> None:
    state = fitted(CHINESE).save(tmp_path)
    with pytest.raises(BundleError, match="format 99"):
        TextPipeline.load(tmp_path, {**state, "version": 99})
    for key in state:
        with pytest.raises(BundleError):
            TextPipeline.load(tmp_path, {name: value for name, value in state.items() if name != key})
    (tmp_path / "vocabulary.txt").unlink()
    with pytest.raises(BundleError, match=r"vocabulary\.txt"):
        TextPipeline.load(tmp_path, state)


def test_misuse_is_refused_in_words(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("词\n", "utf-8")
    with pytest.raises(WorkError, match="not fitted"):
        TextPipeline.create(TextConfig(), ["tokens"], preferences=TextPreferences()).encode(["a"])
    with pytest.raises(ConfigError, match="did you mean 'tokens'"):
        TextPipeline.create(TextConfig(), ["token"], preferences=TextPreferences())
    with pytest.raises(ConfigError, match="user_dictionary"):
        fitted(CHINESE, ("tokens",), segment="subword", user_dictionary=str(words))
    with pytest.raises(ConfigError, match="n-grams of words only"):
        fitted(CHINESE, ("ngrams",), segment="subword")
    with pytest.raises(ConfigError, match=r"text\.tokenizer"):
        fitted(CHINESE, ("tokens",), segment="jieba", tokenizer="tokenizer.json")
    with pytest.raises(ConfigError, match="no encoding 'ngrams'"):
        fitted(CHINESE, ("tokens",)).vocabulary_size("ngrams")


def test_no_texts_have_no_rows() -> None:
    encoded = fitted(CHINESE).encode([])
    assert {name: (len(rows), len(rows.values)) for name, rows in encoded.items()} == {
        "tokens": (0, 0),
        "ngrams": (0, 0),
    }
    assert encoded["ngrams"].weights is not None


def test_texts_are_cut_once_for_both_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = fitted(CHINESE)
    cuts = 0

    def counted(segmenter: Segmenter, texts: Sequence[str]) -> list[str]:
        nonlocal cuts
        cuts += 1
        return cut_all(segmenter, texts)

    monkeypatch.setattr("fastserve.text.encoder.cut_all", counted)
    assert set(pipeline.encode(CHINESE)) == {"tokens", "ngrams"}
    assert cuts == 1


def test_real_texts_are_the_same_alone_and_in_processes(shared_data: Path) -> None:
    with gzip.open(shared_data / "zh_sentiment_100k" / "dev.tsv.gz", "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n").rpartition("\t")[2] for line in file][1:6_001]
    pipeline = TextPipeline.create(TextConfig(), ["tokens", "ngrams"], preferences=TextPreferences())
    pipeline.fit(texts, workers=1)
    (spread,) = pipeline.encode_blocks([texts], workers=2)
    assert same(spread, pipeline.encode(texts))
    for number in range(0, len(texts), 40):
        row = {name: rows.take(np.array([number])) for name, rows in spread.items()}
        assert same(pipeline.encode([texts[number]]), row)
