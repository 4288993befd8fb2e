"""Documents as rows to learn from: every token predicted once, answers counted and prompts not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.text.rows import RowMaker
from fastserve.text.writing_pipeline import WritingPipeline
from fastserve.types import Completion, PlainText


@pytest.fixture(scope="module")
def tokenizer() -> LanguageTokenizer:
    return LanguageTokenizer.train(["the quick brown fox 床前明月光，疑是地上霜。"] * 20, size=400)


def maker(tokenizer: LanguageTokenizer, kind: str, context: int) -> RowMaker:
    return RowMaker(WritingPipeline(tokenizer, kind), context)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=30)
@given(text=st.text(min_size=1, max_size=300), context=st.integers(2, 40))
def test_each_token_of_a_long_text_is_predicted_once(tokenizer: LanguageTokenizer, text: str, context: int) -> None:
    encoded = maker(tokenizer, "text", context).encode([PlainText(text)], np.array([7]))
    whole = [tokenizer.bos, *tokenizer.encode([text]).values.tolist(), tokenizer.eos]
    rows = [encoded.tokens.between(i, i + 1).values.tolist() for i in range(len(encoded.tokens))]
    assert all(len(row) <= context for row in rows)
    assert [token for row in rows for token in row[1:]] == whole[1:]
    assert encoded.targets.sum(0).tolist() == [len(text), len(text.encode()), len(whole) - 1]
    assert set(encoded.rows.tolist()) == {7}
    assert encoded.tokens.weights is None


def test_parts_of_a_text_begin_and_end_only_with_it(tokenizer: LanguageTokenizer) -> None:
    parts = [PlainText("fox", ends=False), PlainText("brown", begins=False)]
    encoded = maker(tokenizer, "text", 50).encode(parts, np.array([1, 1]))
    first, last = (encoded.tokens.between(i, i + 1).values.tolist() for i in range(2))
    assert (first[0], first[-1] == tokenizer.eos) == (tokenizer.bos, False)
    assert (last[0] == tokenizer.bos, last[-1]) == (False, tokenizer.eos)


def test_only_the_answer_counts(tokenizer: LanguageTokenizer) -> None:
    made = maker(tokenizer, "completion", 100)
    encoded = made.encode([Completion("quick", "床前明月光")], np.array([1]))
    weights, ids = encoded.tokens.weights, encoded.tokens.values
    assert weights is not None
    assert tokenizer.decode(ids[weights == 1]) == "床前明月光"
    assert ids[weights == 1][-1] == tokenizer.eos
    assert ids[weights == 0].tolist() == made.pipeline.ask("quick").tolist()
    assert encoded.targets.tolist() == [[5, 15, int(weights.sum())]]


def test_what_does_not_fit_is_told(tokenizer: LanguageTokenizer) -> None:
    made = maker(tokenizer, "completion", 12)
    documents = [Completion("fox", "明月" * 30), Completion("fox" * 50, "明月"), Completion("a", "b")]
    encoded = made.encode(documents, np.array([3, 5, 8]))
    assert (made.faults.cut, made.faults.empty, encoded.rows.tolist()) == ([3], [5], [3, 8])
    assert encoded.targets[0, 2] == np.count_nonzero(encoded.tokens.weights[1:12])  # type: ignore[index]
    assert sum("12 tokens" in sentence for sentence in made.faults.sentences(12)) == 2


def test_a_saved_pipeline_asks_alike(tokenizer: LanguageTokenizer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    pipeline = WritingPipeline(tokenizer, "completion")
    again = WritingPipeline.load(tmp_path, pipeline.save(tmp_path))
    assert again.ask("床前 fox").tolist() == pipeline.ask("床前 fox").tolist()
    assert again.ends == pipeline.ends
    assert tokenizer.eos in again.ends
