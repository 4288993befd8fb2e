"""The cache of an engine: whatever is moved, copied, swapped or grown, attention is that of the plain cache."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastserve.generation.slots import SlotCache, zeros
from fastserve.generation.step_attention import APART, Chunk, StepAttention, together
from fastserve.models.attention import CachedCausal

LAYERS, HEADS, KEYS, SIZE, LONGEST = 2, 4, 2, 8, 200


class Twin:
    """A text in a slot, and the same in a plain cache of its own."""

    def __init__(self, slot: int) -> None:
        self.slot, self.length, self.plain = slot, 0, CachedCausal(LAYERS, 1)


def tensors(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, HEADS, SIZE), torch.randn(count, KEYS, SIZE), torch.randn(count, KEYS, SIZE)


def compare(cache: SlotCache, texts: list[Twin], counts: list[int], *, window: int | None, cap: float | None) -> None:
    """One step of the texts, each by so many tokens, in both caches."""
    ones = {text.slot: text for text, count in zip(texts, counts, strict=True) if count == 1}
    front = [ones[slot] for slot in cache.gather(list(ones))]
    others = [(text, count) for text, count in zip(texts, counts, strict=True) if count > 1]
    order = [(text, 1) for text in front] + others
    chunks = [Chunk(text.slot, text.length, count) for text, count in order]
    step = StepAttention(cache, chunks[: len(front)], chunks[len(front) :])
    plain = [text.plain.extend([count]) for text, count in order]
    assert torch.equal(step.positions, torch.cat([one.positions for one in plain]))
    for layer in range(LAYERS):
        query, key, value = tensors(sum(counts))
        found = step(layer, query, key, value, scale=0.3, window=window, cap=cap)
        start = 0
        for one, (_, count) in zip(plain, order, strict=True):
            part = slice(start, start := start + count)
            expected = one(layer, query[part], key[part], value[part], scale=0.3, window=window, cap=cap)
            assert torch.allclose(found[part], expected, atol=1e-5)
    for text, count in order:
        text.length += count
        cache.keep(text.slot, text.length)


@pytest.mark.parametrize(("window", "cap"), [(None, None), (5, None), (None, 2.0), (7, 3.0)])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_attention_is_that_of_the_plain_cache(data: st.DataObject, window: int | None, cap: float | None) -> None:
    torch.manual_seed(0)
    cache = SlotCache(LAYERS, 5, LONGEST)
    texts = {slot: Twin(slot) for slot in range(5)}
    away: dict[int, object] = {}
    for _ in range(data.draw(st.integers(2, 6))):
        here = [slot for slot in texts if slot not in away]
        moved = data.draw(st.sampled_from(range(5)))
        if moved in away:
            cache.swap_in(moved, away.pop(moved))
        elif data.draw(st.booleans()) and len(here) > 1:
            away[moved] = cache.swap_out(moved, texts[moved].length)
        elif data.draw(st.booleans()):
            texts[moved] = Twin(moved)
            cache.keep(moved, 0)
        running = data.draw(
            st.lists(st.sampled_from([slot for slot in texts if slot not in away]), min_size=1, unique=True)
        )
        counts = data.draw(st.lists(st.sampled_from([1, 1, 2, 9, 30]), min_size=len(running), max_size=len(running)))
        compare(cache, [texts[slot] for slot in running], counts, window=window, cap=cap)


def test_a_prefix_that_is_copied_is_gone_on_from() -> None:
    torch.manual_seed(0)
    cache = SlotCache(LAYERS, 3, LONGEST)
    first = Twin(0)
    compare(cache, [first], [20], window=None, cap=None)
    second = Twin(2)
    second.plain.lengths = [12]
    second.plain._remembered = [[(keys[:12], values[:12])] for ((keys, values),) in first.plain._remembered]
    cache.copy(0, 2, 12)
    second.length = 12
    compare(cache, [first, second], [1, 3], window=None, cap=None)
    compare(cache, [second, first], [1, 1], window=None, cap=None)


def test_an_empty_row_comes_back_after_others_have_grown() -> None:
    torch.manual_seed(0)
    cache = SlotCache(LAYERS, 2, LONGEST)
    first, empty = Twin(0), Twin(1)
    compare(cache, [first], [2], window=None, cap=None)
    away = cache.swap_out(1, 0)
    compare(cache, [first], [90], window=None, cap=None)
    cache.swap_in(1, away)
    compare(cache, [first, empty], [1, 3], window=None, cap=None)


def test_a_row_that_is_much_longer_is_attended_apart() -> None:
    assert together([10, 12, 11]) == 12
    assert together([10] * 8 + [3 * APART]) == 10
    assert together([1000, 3 * APART]) == 3 * APART
    torch.manual_seed(0)
    cache = SlotCache(LAYERS, 9, 4 * APART)
    texts = [Twin(slot) for slot in range(9)]
    compare(cache, texts, [4] * 8 + [3 * APART], window=None, cap=None)
    for window, cap in itertools.product((None, 6), (None, 2.0)):
        compare(cache, texts, [1] * 9, window=window, cap=cap)


def test_what_was_not_a_number_harms_nobody_who_comes_after() -> None:
    cache = SlotCache(1, 2, LONGEST)
    step = StepAttention(cache, [], [Chunk(0, 0, 9)])
    query, key, value = tensors(9)
    step(0, query, key * torch.nan, value * torch.nan, scale=1.0)
    cache.clear(0)
    query, key, value = tensors(2)
    found = StepAttention(cache, [Chunk(0, 0, 1), Chunk(1, 0, 1)], [])(0, query, key, value, scale=1.0)
    assert found.isfinite().all()


def test_rows_take_memory_as_they_are_used() -> None:
    cache = SlotCache(1, 1000, 100_000)
    _, key, value = tensors(1)
    cache.reserve(3, 70)
    cache.layer(0, key, value)
    small = cache.bytes
    assert small == 2 * 4 * KEYS * 128 * SIZE * 4
    cache.reserve(3, 129)
    assert cache.bytes == small // 128 * 192


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros(dtype: torch.dtype) -> None:
    assert torch.equal(zeros((2, 3), dtype, torch.device("cpu")), torch.zeros(2, 3, dtype=dtype))
    assert zeros((0, 3), dtype, torch.device("cpu")).shape == (0, 3)
