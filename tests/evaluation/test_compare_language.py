"""Two language models on the same texts."""

from __future__ import annotations

import numpy as np
import pytest
from needed_samples import scored
from pages import EVIL, Page, check_harmless

from fastserve.errors import DataError
from fastserve.evaluation import LanguageComparison, compare_language, comparison_html, comparison_text
from fastserve.evaluation.needed import needed


def pair(rows: int, gap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sums of a and of b, which needs about `gap` bits a character more, and the sizes of both."""
    sums, sizes = scored(rows, 1)
    other = sums.copy()
    noise = np.random.default_rng(5).normal(0, 0.1, rows)
    other[:, 0] += sizes[:, 0] * np.log(2) * (gap + noise)
    return sums, other, sizes


def test_a_small_difference_is_found_where_texts_differ_much_more() -> None:
    a, b, sizes = pair(300, -0.05)
    found = compare_language(needed(a, sizes), needed(b, sizes), names=("old", "new"))
    gap = found.differences["bits_per_character"].difference
    assert found.significant
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < -0.05 < gap.high < 0
    assert found.verdict.startswith("new is better than old: it needs 0.0")
    assert set(found.differences) == {"bits_per_character", "bits_per_byte", "loss", "perplexity"}


def test_models_that_are_alike_are_rarely_told_apart() -> None:
    told = 0
    for seed in range(40):
        sums, sizes = scored(100, 1)
        other = sums.copy()
        other[:, 0] += sizes[:, 0] * np.random.default_rng(seed).normal(0, 0.1, 100)
        told += compare_language(needed(sums, sizes), needed(other, sizes), resamples=200).significant
    assert told <= 6


def test_the_rows_that_would_be_needed_are_named() -> None:
    a, b, sizes = pair(40, 0.01)
    found = compare_language(needed(a, sizes), needed(b, sizes))
    assert not found.significant
    assert "rows would be needed to be sure of the 0.0" in found.verdict


def test_a_model_beside_itself() -> None:
    a, _, sizes = pair(20, 0)
    found = compare_language(needed(a, sizes), needed(a, sizes))
    assert found.p_value == 1.0
    assert "need the same" in found.verdict
    assert found.details["changed"] == {"better": [], "worse": []}


def test_other_tokens_and_other_pieces_of_the_same_documents_compare() -> None:
    a, b, sizes = pair(60, 0.3)
    halves = np.repeat(np.arange(60), 2)  # the other model cut each document into two rows
    split = np.stack([sizes // 2, sizes - sizes // 2], 1).reshape(-1, 2)
    cut = b[halves] / 2
    cut[:, 1] *= 3
    found = compare_language(needed(a, sizes, rows=range(60)), needed(cut, split, rows=halves))
    assert found.rows == 60
    assert set(found.differences) == {"bits_per_character", "bits_per_byte"}
    assert found.differences["bits_per_character"].difference.value == pytest.approx(0.3, abs=0.05)


def test_pieces_of_one_long_text_are_compared_where_both_cut_it_alike() -> None:
    a, b, sizes = pair(80, -0.1)
    assert compare_language(needed(a, sizes, rows=[1] * 80), needed(b, sizes, rows=[1] * 80)).significant


def test_one_document_tells_nothing() -> None:
    a, b, sizes = pair(1, -0.5)
    found = compare_language(needed(a, sizes), needed(b, sizes))
    assert not found.significant
    assert "can be told from one row" in found.verdict


def test_different_rows_or_texts_are_refused() -> None:
    a, _, sizes = pair(10, 0)
    with pytest.raises(DataError, match=r"different rows \(row 10"):
        compare_language(needed(a, sizes), needed(a[:9], sizes[:9]))
    longer = sizes + np.array([[1, 3]])
    with pytest.raises(DataError, match=r"row 1 counts .* characters for old and"):
        compare_language(needed(a, sizes), needed(a, longer), names=("old", "new"))


def test_pages_and_text() -> None:
    a, b, sizes = pair(50, 0.2)
    texts = [EVIL] * 50
    found = compare_language(needed(a, sizes, texts=texts), needed(b, sizes, texts=texts), names=(EVIL, "new"))
    page = Page(comparison_html(found, title=EVIL))
    check_harmless(page)
    assert found.verdict in "".join(page.words)
    assert comparison_text(found).startswith(found.verdict)
    assert LanguageComparison.from_json(found.to_json()) == found
