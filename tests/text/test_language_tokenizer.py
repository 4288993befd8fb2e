"""The tokenizer of a language model: trained, saved, and what it does to every character there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.errors import BundleError, ConfigError, DataError
from fastserve.text.language_tokenizer import BEGIN, END, PAD, SPECIAL, LanguageTokenizer
from fastserve.types import Ragged

TEXTS = ["床前明月光，疑是地上霜。", "To be, or not to be: that is the question.\n", "don't stop, 2026!\r\n\r\n"] * 20
SURROGATES = range(0xD800, 0xE000)


@pytest.fixture(scope="module")
def tokenizer() -> LanguageTokenizer:
    return LanguageTokenizer.train(TEXTS, size=400)


def rows(ragged: Ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])] if len(ragged) else []


def test_special_tokens_have_the_first_ids_and_their_parts(tokenizer: LanguageTokenizer) -> None:
    assert list(tokenizer.special) == list(SPECIAL)
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2)
    assert 256 + len(SPECIAL) < tokenizer.vocabulary_size <= 400


def test_learned_tokens_are_longer_than_bytes_and_the_density_says_so(tokenizer: LanguageTokenizer) -> None:
    density = tokenizer.describe(TEXTS)
    assert density.characters == sum(map(len, TEXTS))
    assert density.tokens == len(tokenizer.encode(TEXTS).values)
    assert density.characters_per_token > 1.5 > 1 > density.characters_per_byte
    assert f"{density.characters_per_token:.2f} characters a token" in str(density)


def test_tokens_stay_within_words(tokenizer: LanguageTokenizer) -> None:
    parts = [tokenizer.decode([number]) for number in range(len(SPECIAL), tokenizer.vocabulary_size)]
    assert not [part for part in parts if "，" in part[1:] or ("\n" in part and part.strip().isalpha())]


@pytest.mark.parametrize("plane", range(17))
def test_every_character_of_every_plane_comes_back(tokenizer: LanguageTokenizer, plane: int) -> None:
    points = [point for point in range(plane << 16, (plane + 1) << 16) if point not in SURROGATES]
    texts = ["".join(map(chr, points[start : start + 512])) for start in range(0, len(points), 512)]
    encoded = rows(tokenizer.encode(texts))
    assert [tokenizer.decode(ids) for ids in encoded] == texts


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.sampled_from(" \t\r\n'sＡ1，👩‍👩‍👧a\u0301")))
def test_round_trip(tokenizer: LanguageTokenizer, text: str, blanks: str) -> None:
    for one in (text, blanks, text + blanks + text):
        ids = tokenizer.encode([one]).values
        assert tokenizer.decode(ids) == one
        assert not set(ids.tolist()) & set(tokenizer.special.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL, "a", " ", "<|", "|>", "end"])))
def test_a_text_cannot_write_a_special_token(tokenizer: LanguageTokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode([text]).values
    assert not set(ids.tolist()) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == text


def test_special_tokens_in_the_training_data_are_not_learned_from_it() -> None:
    made = LanguageTokenizer.train([f"{END}{PAD}<|im_end|>" * 50] * 20, size=600)
    ids = made.encode([END + PAD + "<|im_end|>"]).values
    assert not set(ids.tolist()) & set(made.special.values())


def test_special_tokens_are_shown_only_when_wanted(tokenizer: LanguageTokenizer) -> None:
    ids = [2, *tokenizer.encode(["moon"]).values.tolist(), 1]
    assert tokenizer.decode(ids) == "moon"
    assert tokenizer.decode(ids, special=True) == f"{BEGIN}moon{END}"


def test_rows_do_not_depend_on_their_neighbours_or_on_the_size_of_a_block(
    tokenizer: LanguageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = rows(tokenizer.encode([*TEXTS, "", "a"]))
    monkeypatch.setattr("fastserve.text.language_tokenizer._BLOCK_CHARACTERS", 30)
    assert rows(tokenizer.encode([*TEXTS, "", "a"])) == together
    assert [rows(tokenizer.encode([text]))[0] for text in [*TEXTS[:5], "", "a"]] == [*together[:5], *together[-2:]]
    assert len(tokenizer.encode([])) == 0


def test_offsets_say_where_each_token_begins(tokenizer: LanguageTokenizer) -> None:
    texts = ["明月 the question 😀!", "", "ab"]
    ids, starts = tokenizer.encode_with_offsets(texts)
    assert rows(ids) == rows(tokenizer.encode(texts))
    for text, row, places in zip(texts, rows(ids), rows(starts), strict=True):
        assert len(row) == len(places)
        assert places == sorted(places)
        ends = [*places[1:], len(text)][: len(places)]
        whole = [(number, text[a:b]) for number, a, b in zip(row, places, ends, strict=True) if b > a]
        assert "".join(part for _, part in whole) == text


def test_what_is_no_text_is_said(tokenizer: LanguageTokenizer) -> None:
    with pytest.raises(DataError, match="text 1 holds half a character"):
        tokenizer.encode(["a", "b\ud800"])
    with pytest.raises(DataError, match="text 0 is a NoneType; expected a string"):
        tokenizer.encode([None])  # type: ignore[list-item]


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"260 ids is too small.* alone are 261"):
        LanguageTokenizer.train(TEXTS, size=260)


def test_saved_and_loaded_it_is_the_same(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    state = tokenizer.save(tmp_path)
    loaded = LanguageTokenizer.load(tmp_path, state)
    assert rows(loaded.encode(TEXTS)) == rows(tokenizer.encode(TEXTS))
    assert (loaded.eos, loaded.bos, loaded.pad) == (tokenizer.eos, tokenizer.bos, tokenizer.pad)
    assert loaded.special == tokenizer.special
    assert loaded.save(tmp_path / "again") == state
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_transformers_reads_the_saved_folder(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    import transformers

    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS[:3], "😀 naïve  blanks\t\n\n 12345"]
    assert [theirs(text)["input_ids"] for text in texts] == rows(tokenizer.encode(texts))
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (1, 2, 0)
    assert len(theirs) == tokenizer.vocabulary_size
    ids = tokenizer.encode([texts[-1]]).values.tolist()
    assert theirs.decode(ids) == tokenizer.decode(ids) == texts[-1]


def test_a_damaged_folder_is_refused(tokenizer: LanguageTokenizer, tmp_path: Path) -> None:
    state = tokenizer.save(tmp_path)
    with pytest.raises(BundleError, match="has format 99"):
        LanguageTokenizer.load(tmp_path, {**state, "version": 99})
    with pytest.raises(BundleError, match="is not the one that the model was trained with"):
        LanguageTokenizer.load(tmp_path, {**state, "vocabulary_size": 7})
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read.* restore it from a copy"):
        LanguageTokenizer.load(tmp_path, state)
