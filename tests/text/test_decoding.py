"""Text that appears token by token: whole characters only, and the same text in the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.text.language_tokenizer import SPECIAL, LanguageTokenizer

HALF = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def bytes_only() -> LanguageTokenizer:
    """A token is a byte: every character but those of ASCII is cut."""
    return LanguageTokenizer.train([], size=256 + len(SPECIAL))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_stream_shows_whole_characters_as_soon_as_they_are_whole(bytes_only: LanguageTokenizer, text: str) -> None:
    stream, shown = bytes_only.stream(), ""
    ids = bytes_only.encode([text]).values.tolist()
    assert len(ids) == len(text.encode("utf-8"))
    for seen, number in enumerate(ids, start=1):
        shown += stream.push([number])
        assert shown == text.encode("utf-8")[:seen].decode("utf-8", "ignore")
    assert stream.finish() == ""
    assert shown == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-1, 300)), st.data())
def test_any_ids_in_any_portions_give_what_decode_gives(
    bytes_only: LanguageTokenizer, ids: list[int], data: st.DataObject
) -> None:
    stream, shown, place = bytes_only.stream(), "", 0
    while place < len(ids):
        step = data.draw(st.integers(1, len(ids) - place))
        shown += stream.push(ids[place : place + step])
        place += step
    assert shown + stream.finish() == bytes_only.decode(ids)


def test_half_a_character_at_the_end_is_said_and_not_kept(bytes_only: LanguageTokenizer) -> None:
    ids = bytes_only.encode(["月"]).values.tolist()
    stream = bytes_only.stream()
    assert stream.push(ids[:2]) == ""
    assert stream.finish() == HALF
    assert bytes_only.decode(ids[:2]) == HALF
    assert bytes_only.decode(ids[1:]) == HALF * 2


def test_a_character_begun_in_the_prompt_is_finished(bytes_only: LanguageTokenizer) -> None:
    ids = bytes_only.encode(["a月"]).values.tolist()
    stream = bytes_only.stream(after=ids[:3])
    assert stream.push(ids[3:]) == "月"
    assert bytes_only.stream(after=ids[:1]).push(ids[1:]) == "月"


def test_sizes_add_up_to_characters_and_bytes(bytes_only: LanguageTokenizer) -> None:
    text = "a月😀é"
    sizes = bytes_only.bytes.sizes()
    assert sizes[bytes_only.encode([text]).values].sum(0).tolist() == [len(text), len(text.encode("utf-8"))]
    assert sizes[: len(SPECIAL)].tolist() == [[0, 0]] * len(SPECIAL)
