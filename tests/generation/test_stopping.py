"""A stop string ends a text, however the text is cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastserve.generation.stopping import StopStrings

small_texts = st.text("abc", max_size=12)
several = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def plain(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Letter by letter: the first stop string that is complete, and of those that end there the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(small_texts, several, st.lists(st.integers(0, 12)))
def test_any_cut_of_a_text_stops_at_the_same_place(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    watch = StopStrings(stops)
    shown = ""
    for start, end in pairwise(edges):
        shown += watch.push(text[start:end])
        assert plain(text, stops)[0].startswith(shown)  # nothing is shown that would have to be taken back
    shown += watch.finish()
    assert (shown, watch.found) == plain(text, stops)


def test_only_what_may_become_a_stop_string_waits() -> None:
    watch = StopStrings(["\n\nUser:"])
    assert watch.push("Hello\n") == "Hello"
    assert watch.push("there\n\nUs") == "\nthere"
    assert watch.push("age") == "\n\nUsage"
    assert watch.push("\n\nUser: more") == ""
    assert watch.found == "\n\nUser:"
    assert watch.push("later") == ""


def test_without_stop_strings_nothing_waits() -> None:
    assert StopStrings(()).push("as it comes") == "as it comes"
