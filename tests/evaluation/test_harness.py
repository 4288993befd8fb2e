"""Multiple choice, cloze and preferences, by likelihoods that a test makes up and by a real small network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from fastserve.errors import DataError, WorkError
from fastserve.evaluation.harness import (
    Cloze,
    Prompt,
    Question,
    judge_items,
    judge_preferences,
    read_items,
    scorer,
    win_rates,
)
from fastserve.generation.likelihood import Likelihood
from fastserve.models.decoder import Decoder, DecoderOptions
from fastserve.models.network import NetworkShape
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.text.writing_pipeline import WritingPipeline
from fastserve.types import Preference


def by_letters(pairs: Sequence[tuple[Prompt, str]]) -> list[Likelihood]:
    """Each letter costs 1, the letters of the prompt half of it."""
    return [
        Likelihood(-sum(0.5 if letter in str(prompt) else 1.0 for letter in text), set(text) <= set(str(prompt)))
        for prompt, text in pairs
    ]


def write(folder: Path, *rows: Any) -> str:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def test_rows_are_read_in_each_form(tmp_path: Path) -> None:
    address = write(
        tmp_path,
        {"question": "q", "choices": ["甲", "乙"], "answer": 1},
        {"prompt": "p", "choices": ["x", "yy", "z"], "answer": "yy"},
        {"prompt": "p", "choices": ["x", "yy", "z"], "answer": "c"},
        {"prompt": "the cat", "completion": " sat"},
    )
    assert read_items(address) == [
        Question("q", ("甲", "乙"), 1, 1),
        Question("p", ("x", "yy", "z"), 1, 2),
        Question("p", ("x", "yy", "z"), 2, 3),
        Cloze("the cat", " sat", 4),
    ]


def test_faulty_rows_are_listed_with_their_numbers(tmp_path: Path) -> None:
    address = write(
        tmp_path,
        {"prompt": "p", "choices": ["x", "y"], "answer": 2},
        {"prompt": "p", "choices": ["x"], "answer": 0},
        {"choices": ["x", "y"], "answer": 0},
        {"prompt": "p"},
        {"prompt": "p", "choices": ["x", "y"], "answer": True},
        {"prompt": "p", "choices": ["x", "y"]},
        [1],
    )
    with pytest.raises(DataError) as caught:
        read_items(address)
    message = str(caught.value)
    assert "row 1: answer 2 is none of the 2 choices; expected a place from 0 to 1" in message
    assert "row 2: 'choices' must be a list of at least two texts" in message
    assert "row 3: has no text in 'prompt' or 'question'" in message
    assert "row 4: has no text in 'completion'" in message
    assert "and 2 rows more" in message


def test_only_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(DataError, match="questions are read from jsonl or json"):
        read_items(str(tmp_path / "items.csv"))


def test_choices_by_the_sum_and_by_length() -> None:
    questions = [
        Question("abc", ("ab", "xyz"), 0, 1),  # -1 against -3
        Question("abc", ("abca", "x"), 0, 2),  # -2 against -1, but -0.5 against -1 a character
        Question("abc", ("x", "ab"), 0, 3),  # -1 against -1: the first; a character: the second
    ]
    plain, by_length = judge_items(questions, by_letters)
    assert (plain.passed, by_length.passed, plain.rows) == (2, 2, 3)
    assert [failure["row"] for failure in plain.failures] == [2]
    assert plain.failures[0]["why"] == "chose “x”, right is “abca”"
    assert [failure["row"] for failure in by_length.failures] == [3]
    assert "chance gives 50.0%" in plain.meaning


def test_cloze_rows_count_where_greedy_decoding_writes_them() -> None:
    (check,) = judge_items([Cloze("abc", "ab", 5), Cloze("abc", "ax", 6)], by_letters)
    assert (check.passed, check.rows) == (1, 2)
    assert check.failures[0]["row"] == 6
    assert "0.90 bits" in check.meaning  # 2.5 nats for 4 characters


def test_preferences_by_the_sum_and_by_length() -> None:
    pairs = [
        Preference("abc", "ab", "xyz"),
        Preference("abc", "abcabc", "xy"),  # -3 against -2; -0.5 against -1
        Preference("abc", "x", "x"),  # equal is no win
    ]
    plain, by_length = judge_preferences(pairs, by_letters, rows=[7, 8, 9])
    assert (plain.passed, by_length.passed) == (1, 2)
    assert [failure["row"] for failure in plain.failures] == [8, 9]
    assert plain.failures[0]["why"] == "-3.00 against -2.00"


def test_win_rates_have_intervals() -> None:
    logs = np.stack([np.zeros(100), np.where(np.arange(100) < 70, -1.0, 1.0)], 1)
    plain, _ = win_rates(logs, np.ones((100, 2)))
    assert plain.share.value == 0.7
    assert plain.share.low is not None
    assert 0.59 < plain.share.low < 0.62


def test_nothing_to_judge_and_numbers_that_are_none() -> None:
    with pytest.raises(DataError, match="nothing to judge"):
        judge_items([], by_letters)
    with pytest.raises(DataError, match="nothing to check"):
        judge_preferences([], by_letters)
    with pytest.raises(WorkError, match="row 4 a likelihood that is not a number"):
        judge_items([Cloze("a", "b", 4)], lambda pairs: [Likelihood(float("nan"), False) for _ in pairs])


def test_a_network_scores_texts_as_they_are_framed_in_training() -> None:
    tokenizer = LanguageTokenizer.train(["the cat sat on the mat"] * 3, size=280)
    torch.manual_seed(0)
    options = DecoderOptions.model_validate({"layers": 1, "dim": 16, "heads": 2, "key_value_heads": 1, "context": 64})
    network = Decoder(options, NetworkShape({"tokens": tokenizer.vocabulary_size}, tokenizer.vocabulary_size)).eval()
    writer = cast(Any, SimpleNamespace(pipeline=WritingPipeline(tokenizer, "text"), network=network))
    found = scorer(writer)([("the cat", " sat"), ("the cat", " sat on the mat"), ("", "the")])
    assert found[0].log > found[1].log
    assert all(np.isfinite(one.log) and one.log < 0 for one in found)
    items = [Question("the cat", (" sat", " mat"), 0, 1), Cloze("the", " cat", 2)]
    assert [check.rows for check in judge_items(items, scorer(writer))] == [1, 1, 1]
