"""The batcher alone: what it takes, what it refuses, and that no request is ever lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.serving.batcher import Batch, Batcher, Entry, Overloaded


def scores_of(texts: list[str]) -> np.ndarray:
    """A plain model: each text's length and its first letter."""
    return np.array([[len(text), ord(text[0])] for text in texts], np.float32)


def entry(*texts: str, done: Callable[[Entry], None] = lambda _: None) -> Entry:
    return Entry(texts, [len(text) for text in texts], done)


def compute(batcher: Batcher) -> Batch | None:
    batch = batcher.next_batch()
    if batch is not None:
        batcher.finish(batch, scores_of(batch.texts), 0.001)
    return batch


def test_what_queued_is_one_batch_sorted_by_length() -> None:
    batcher = Batcher(budget=100, max_requests=10, max_tokens=1000)
    for text in ("ccc", "a", "bb"):
        batcher.submit(entry(text))
    batch = batcher.next_batch()
    assert batch is not None
    assert batch.texts == ["a", "bb", "ccc"]
    assert batch.tokens == 9
    assert batcher.next_batch() is None


def test_padded_cost_counts_not_the_sum() -> None:
    batcher = Batcher(budget=12, max_requests=10, max_tokens=1000)
    for text in ("a", "b", "cccccc", "d"):
        batcher.submit(entry(text))
    first = batcher.next_batch()
    assert first is not None
    assert first.texts == ["a", "b"], "a third text of 6 makes 3 x 6 = 18 padded tokens"


def test_a_text_over_the_budget_goes_alone() -> None:
    batcher = Batcher(budget=4, max_requests=10, max_tokens=1000)
    batcher.submit(entry("x" * 50))
    batcher.submit(entry("y"))
    sizes = [len(batch) for batch in iter(lambda: compute(batcher), None)]
    assert sizes == [1, 1]


def test_a_big_request_does_not_hold_up_a_small_one() -> None:
    batcher = Batcher(budget=4, max_requests=10, max_tokens=1000)
    ended: list[str] = []
    batcher.submit(entry(*["b"] * 20, done=lambda _: ended.append("big")))
    batcher.submit(entry("s", done=lambda _: ended.append("small")))
    compute(batcher)
    compute(batcher)
    assert ended == ["small"]
    while compute(batcher):
        pass
    assert ended == ["small", "big"]


def test_rows_come_back_to_their_places() -> None:
    found: list[np.ndarray] = []
    batcher = Batcher(budget=6, max_requests=10, max_tokens=1000)
    texts = ("long one", "b", "middle", "d", "e")
    batcher.submit(entry(*texts, done=lambda e: found.append(e.scores)))  # type: ignore[arg-type]
    while compute(batcher):
        pass
    np.testing.assert_array_equal(found[0], scores_of(list(texts)))


def test_full_in_requests_and_in_tokens() -> None:
    batcher = Batcher(budget=100, max_requests=2, max_tokens=10)
    batcher.submit(entry("aaaa"))
    with pytest.raises(Overloaded, match="1 requests with 4 tokens"):
        batcher.submit(entry("b" * 7))
    batcher.submit(entry("c"))
    with pytest.raises(Overloaded):
        batcher.submit(entry("d"))
    assert batcher.counts.refused == 2


def test_a_request_bigger_than_the_queue_is_taken_when_it_is_alone() -> None:
    batcher = Batcher(budget=100, max_requests=2, max_tokens=10)
    batcher.submit(entry("a" * 50))
    assert batcher.waiting == 1


def test_retry_after_follows_the_measured_rate() -> None:
    batcher = Batcher(budget=10, max_requests=100, max_tokens=10_000)
    assert batcher.retry_after() == 1
    batcher.submit(entry("a" * 10))
    batch = batcher.next_batch()
    assert batch is not None
    batcher.finish(batch, scores_of(batch.texts), 1.0)
    for _ in range(5):
        batcher.submit(entry("b" * 10))
    assert batcher.retry_after() == 5, "50 tokens wait and 10 are done in a second"


def test_a_client_that_leaves_frees_its_place() -> None:
    batcher = Batcher(budget=4, max_requests=2, max_tokens=100)
    gone = entry("gone", "too", done=lambda _: pytest.fail("nobody listens any more"))
    batcher.submit(gone)
    batcher.submit(entry("stay"))
    batcher.cancel(gone)
    batcher.cancel(gone)
    batcher.submit(entry("next"))
    batch = batcher.next_batch()
    assert batch is not None
    assert batch.texts == ["stay"]
    assert (gone.state, batcher.counts.cancelled) == ("cancelled", 1)


def test_leaving_while_it_is_computed() -> None:
    batcher = Batcher(budget=100, max_requests=2, max_tokens=100)
    gone = entry("gone", done=lambda _: pytest.fail("nobody listens any more"))
    batcher.submit(gone)
    batch = batcher.next_batch()
    assert batch is not None
    batcher.cancel(gone)
    batcher.finish(batch, scores_of(batch.texts), 0.1)
    assert gone.state == "cancelled"
    assert not batcher.has_work


def test_one_faulty_text_fails_its_own_request_only() -> None:
    ended: list[tuple[str, str]] = []
    batcher = Batcher(budget=100, max_requests=9, max_tokens=100)
    for text in ("a", "bb"):
        batcher.submit(entry(text, done=lambda e: ended.append((e.texts[0], e.state))))
    batch = batcher.next_batch()
    assert batch is not None
    batcher.finish(batch, scores_of(batch.texts), 0.1, {0: ValueError()})
    assert ended == [("a", "error"), ("bb", "result")]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_accepted_request_ends_exactly_once(data: st.DataObject) -> None:
    """Any order of arrivals, departures, batches and failures: accepted = results + errors + cancelled, none twice."""
    batcher = Batcher(
        budget=data.draw(st.integers(1, 30)),
        max_requests=data.draw(st.integers(1, 6)),
        max_tokens=data.draw(st.integers(1, 60)),
        max_texts=data.draw(st.integers(1, 5)),
    )
    entries: list[Entry] = []
    ended: list[int] = []
    running: list[Batch] = []
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["submit", "submit", "cancel", "take", "finish", "fail"])):
            case "submit":
                texts = data.draw(st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=4))
                new = entry(*texts, done=lambda e: ended.append(id(e)))
                with contextlib.suppress(Overloaded):
                    batcher.submit(new)
                    entries.append(new)
            case "cancel" if entries:
                batcher.cancel(data.draw(st.sampled_from(entries)))
            case "take":
                batch = batcher.next_batch()
                if batch is not None:
                    assert [len(text) for text in batch.texts] == sorted(len(text) for text in batch.texts)
                    assert len(batch) == 1 or batch.tokens <= batcher.budget
                    running.append(batch)
            case "finish" if running:
                batch = running.pop(0)
                batcher.finish(batch, scores_of(batch.texts), 0.01)
            case "fail" if running:
                batch = running.pop(0)
                batcher.finish(batch, scores_of(batch.texts), 0.01, {0: RuntimeError()})
    while running:
        batch = running.pop(0)
        batcher.finish(batch, scores_of(batch.texts), 0.01)
    while compute(batcher):
        pass
    counts = batcher.counts
    assert counts.accepted == len(entries) == counts.results + counts.errors + counts.cancelled
    assert len(ended) == len(set(ended)) == counts.results + counts.errors
    assert all(e.is_over for e in entries)
    assert (batcher.waiting, batcher.waiting_tokens, batcher.has_work) == (0, 0, False)
    for e in entries:
        if e.state == "result":
            np.testing.assert_array_equal(e.scores, scores_of(list(e.texts)))
