"""Segmenters: what they cut, that nothing is lost, and that a block is cut as its texts are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.errors import ConfigError, NotFoundError
from fastserve.plugins import SEGMENTERS
from fastserve.text.segment import (
    DictionarySegmenter,
    cut_all,
    make_segmenter,
    options_of,
    parse_dictionary,
    read_dictionary,
)

ANY = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), st.sampled_from("好的北京大学 ab1.'-\n")
    )
)
WORDS = {"北京大": 0, "大学生": 0, "iphone 15": 0, "好": 0, "c++": 5}


@pytest.mark.parametrize("name", [*SEGMENTERS.builtin])
@pytest.mark.parametrize("words", [{}, WORDS])
@settings(max_examples=80, deadline=None)
@given(texts=st.lists(ANY, max_size=5))
def test_blocks_are_cut_as_their_texts_are_and_nothing_is_lost(
    texts: list[str], name: str, words: dict[str, int]
) -> None:
    segmenter = make_segmenter(name, words)
    expected = ["\x00"]
    for text in texts:
        pieces = segmenter.cut(text)
        assert "".join(pieces) == text
        expected += [*pieces, "\x00"]
    assert cut_all(segmenter, texts) == expected


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("jieba", "我来到北京清华大学", ["我", "来到", "北京", "清华大学"]),
        ("character", "买iPhone15，好", ["买", "iPhone15", "，", "好"]),
        ("whitespace", "don't stop!", ["don't", " ", "stop", "!"]),
        ("whitespace", "It’s 3.14, well-known", ["It’s", " ", "3.14", ",", " ", "well", "-", "known"]),
        ("whitespace", "Москва हिन्दी 你好 :)", ["Москва", " ", "हिन्दी", " ", "你", "好", " ", ":", ")"]),
    ],
)
def test_pieces(name: str, text: str, pieces: list[str]) -> None:
    assert make_segmenter(name, {}).cut(text) == pieces


def test_options_are_kept_also_under_a_user_dictionary() -> None:
    segmenter = make_segmenter("jieba", {"词": 0}, {"hmm": False})
    assert options_of(segmenter) == {"hmm": False}
    assert options_of(make_segmenter("character", {})) == {}


def test_user_words_stay_whole_where_jieba_would_part_or_join_them() -> None:
    text = "永和大王在北京大学生活动中心"
    assert "永和大王" not in make_segmenter("jieba", {}).cut(text)
    pieces = make_segmenter("jieba", {"永和大王": 0, "大学生活动": 0}).cut(text)
    assert pieces[0] == "永和大王"
    assert "大学生活动" in pieces


def test_of_overlapping_user_words_the_more_frequent_then_the_longer_is_taken() -> None:
    assert make_segmenter("character", {"ab": 0, "甲乙": 0, "甲乙丙": 0}).cut("甲乙丙丁") == ["甲乙丙", "丁"]
    assert make_segmenter("character", {"甲乙": 9, "甲乙丙": 0}).cut("甲乙丙丁") == ["甲乙", "丙", "丁"]


def test_user_word_inside_a_latin_word_does_not_count() -> None:
    assert make_segmenter("whitespace", {"art": 0, "a b": 0}).cut("party art, a b") == [
        "party",
        " ",
        "art",
        ",",
        " ",
        "a b",
    ]


def test_many_user_words_are_linear() -> None:
    segmenter = DictionarySegmenter(make_segmenter("character", {}), {f"词{number}": 0 for number in range(50_000)})
    assert len(segmenter.cut("词" * 100_000)) == 100_000


def test_dictionary_formats(tmp_path: Path) -> None:
    assert parse_dictionary(["云计算 5 n", "创新办", "", "New York 7"]) == {"云计算": 5, "创新办": 0, "New York": 7}
    path = tmp_path / "words.txt"
    path.write_text("\ufeff云计算\n创新办 3\n", "utf-8")
    assert read_dictionary(path) == {"云计算": 0, "创新办": 3}


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00"])
def test_a_faulty_dictionary_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"words\.txt"):
        read_dictionary(path)


class Halves:
    """A user's own segmenter, which changes characters."""

    def cut(self, text: str) -> list[str]:
        middle = len(text) // 2
        return [text[:middle].upper(), text[middle:]]


def test_own_segmenter_is_called_text_by_text() -> None:
    segmenter = make_segmenter(f"{__name__}:Halves", {})
    assert cut_all(segmenter, ["abcd", "x", ""]) == ["\x00", "AB", "cd", "\x00", "x", "\x00", "\x00"]


def test_unknown_segmenter_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'jieba'"):
        make_segmenter("jeiba", {})
