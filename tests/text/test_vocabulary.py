"""Words to ids, and the file that holds them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.errors import BundleError
from fastserve.text.encoder import ragged_tokens
from fastserve.text.vocabulary import BLANK, EDGE, Vocabulary

COUNTS = {"b": 3, "a": 3, "c": 9, "rare": 1, " ": 99, "\x00": 99, "\t\n": 9}


def test_most_frequent_first_then_by_text_and_no_white_space() -> None:
    vocabulary = Vocabulary.learn(COUNTS, min_count=2, size=100)
    assert vocabulary.tokens == ["c", "a", "b"]
    assert len(vocabulary) == 5
    assert vocabulary.ids(["\x00", "c", " ", "new", "\n", "b", "\x00"]).tolist() == [EDGE, 2, BLANK, 1, BLANK, 4, EDGE]


def test_size_counts_padding_and_unknown() -> None:
    assert Vocabulary.learn(COUNTS, min_count=1, size=4).tokens == ["c", "a"]
    assert Vocabulary.learn(COUNTS, min_count=1, size=1).tokens == []


@given(
    tokens=st.lists(
        st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\\nr\n\r\x85\u2028"))), unique=True
    )
)
def test_file_gives_back_every_token(tokens: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    Vocabulary(tokens).save(path)
    assert Vocabulary.load(path).tokens == tokens
    assert path.read_bytes().count(b"\n") == len(tokens)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    with pytest.raises(BundleError, match=r"vocabulary\.txt is missing"):
        Vocabulary.load(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(BundleError, match=r"vocabulary\.txt is damaged"):
        Vocabulary.load(path)


@given(
    rows=st.lists(st.lists(st.integers(-1, 9).filter(lambda number: number != 0), max_size=8), max_size=6),
    most=st.integers(1, 9),
)
def test_rows_are_cut_at_the_length_and_white_space_does_not_count(rows: list[list[int]], most: int) -> None:
    codes = np.array([EDGE, *[code for row in rows for code in (*row, EDGE)]], np.int32)
    ragged = ragged_tokens(codes, most)
    ends = ragged.offsets.tolist()
    found = [ragged.values[start:end].tolist() for start, end in itertools.pairwise(ends)]
    assert found == [[code for code in row if code >= 0][:most] for row in rows]
