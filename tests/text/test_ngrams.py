"""The fast n-gram paths against the definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.plugins import SEGMENTERS
from fastserve.text.ngrams import NgramEncoder, NgramOptions, reference
from fastserve.text.segment import cut_all
from fastserve.types import Ragged

ANY = st.text(
    alphabet=st.one_of(st.characters(exclude_characters="\x00"), st.sampled_from("好的 ab1。!\t\n😀é\u3000\x01"))
)
OPTIONS = [
    NgramOptions(bits=18),
    NgramOptions.for_language(has_han=False),
    NgramOptions(wide=(1, 3), narrow=(2, 6), words=(1, 4), bits=22),
    NgramOptions(wide=(2, 5), narrow=(2, 5), words=(1, 0), bits=10),
    NgramOptions(wide=(1, 0), narrow=(1, 0), words=(2, 3), bits=20),
]


def rows(encoded: Ragged) -> list[dict[int, float]]:
    assert encoded.weights is not None
    ends = encoded.offsets.tolist()
    pairs = list(zip(encoded.values.tolist(), encoded.weights.tolist(), strict=True))
    return [dict(pairs[start:end]) for start, end in itertools.pairwise(ends)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("segmenter", ["jieba", "character", "whitespace"])
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(ANY.map(lambda text: text.encode("utf-8", "replace").decode()), max_size=6))
def test_blocks_and_single_texts_equal_the_definition(texts: list[str], options: NgramOptions, segmenter: str) -> None:
    cutter = SEGMENTERS.load(segmenter)()
    expected = [reference(cutter.cut(text), options) for text in texts]
    encoded = NgramEncoder(options).encode(cut_all(cutter, texts))
    assert rows(encoded) == expected
    one_by_one = NgramEncoder(options)
    for text, counts in zip(texts, expected, strict=True):
        one = one_by_one.encode_one(cutter.cut(text))
        assert rows(one) == [counts]
        assert one.values.tolist() == sorted(one.values.tolist())


def test_lone_surrogates_do_not_crash() -> None:
    encoder = NgramEncoder(NgramOptions())
    encoded = encoder.encode(["\x00", "a\ud800b", "\x00"])
    assert rows(encoded) == [reference(["a\ud800b"], NgramOptions())]


def test_rows_depend_on_word_boundaries_and_edges() -> None:
    options = NgramOptions(wide=(1, 0), narrow=(1, 0), words=(1, 1))
    assert reference(["ab", "c"], options) != reference(["a", "bc"], options)
    edges = NgramOptions(wide=(2, 2), narrow=(2, 2), words=(1, 0))
    assert len(reference(["ab"], edges)) == 3  # (edge, a), (a, b), (b, edge)


def test_few_collisions_in_the_table() -> None:
    options = NgramOptions(wide=(1, 0), narrow=(1, 0), words=(1, 1), bits=22)
    words = [f"w{number}" for number in range(20_000)]
    encoded = NgramEncoder(options).encode(["\x00", *[piece for word in words for piece in (word, "\x00")]])
    distinct = len(np.unique(encoded.values))
    assert distinct > 20_000 * (1 - 20_000 / 2**21)  # words have half of the table; chance takes half of this
    assert (encoded.values % 2 == 1).all()


def test_options_survive_json() -> None:
    for options in OPTIONS:
        assert NgramOptions.from_json(options.to_json()) == options
