"""Packed and cached attention are the plain formula."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from causal_samples import LENGTHS, decoder, rows
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastserve.models.attention import CachedCausal, PackedCausal, attend, grouped, visible


def parts(total: int, *, gradient: bool = False, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query of four heads, key and value of two."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(total, heads, 8, generator=generator, dtype=torch.float64).requires_grad_(gradient)
        for heads in (4, 2, 2)
    )


def by_formula(
    offsets: Tensor, query: Tensor, key: Tensor, value: Tensor, window: int | None, cap: float | None
) -> Tensor:
    total = len(query)
    row = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    sees = visible(torch.arange(total), torch.arange(total), window) & (row[:, None] == row)
    heads = (part.transpose(0, 1) for part in (query, key, value))
    return attend(*heads, sees, scale=0.3, cap=cap).transpose(0, 1)


@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6], [0, 0], [30]])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (5, None), (100, None), (None, 2.0), (5, 2.0)])
def test_packed_attention_and_its_gradients_are_the_formula(
    lengths: list[int], window: int | None, cap: float | None
) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    fast, plain = parts(sum(lengths), gradient=True), parts(sum(lengths), gradient=True)
    found = PackedCausal(offsets)(0, *fast, scale=0.3, window=window, cap=cap)
    expected = by_formula(offsets, *plain, window, cap)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for left, right in zip(fast, plain, strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def test_positions_begin_with_each_row() -> None:
    assert PackedCausal(torch.tensor([0, 3, 3, 5])).positions.tolist() == [0, 1, 2, 0, 1]


@given(st.lists(st.integers(1, 300)))
def test_groups_hold_every_row_once_with_little_padding(lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    groups = grouped(lengths)
    assert sum(group.rows for group in groups) == len(lengths)
    assert all(after.start == before.stop for before, after in pairwise(groups))
    assert sum(group.rows * group.length for group in groups) <= 1.25 * sum(lengths) + 8 * len(lengths)


@pytest.mark.parametrize("form", ["llama", "qwen3"])
def test_cached_logits_are_those_of_whole_rows(form: str) -> None:
    """Rows of different lengths that begin together, go on token by token, and one of which ends before the others."""
    network, tokens = decoder(form=form), rows([5, 12, 9])
    whole = network.hidden(tokens.values.long(), PackedCausal(tokens.offsets))
    ids = [tokens.values[start:stop].long() for start, stop in ((0, 5), (5, 17), (17, 26))]
    cache = CachedCausal(network.layers, 3)
    begun, last = [3, 0, 7], [5, 12, 9]
    prefix = torch.cat([row[:count] for row, count in zip(ids, begun, strict=True)])
    found = [list(part) for part in network.hidden(prefix, cache.extend(begun)).split(begun)]
    while any(counts := [int(len(row) < end) for row, end in zip(found, last, strict=True)]):
        step = torch.stack([ids[row][len(found[row])] for row in range(3) if counts[row]])
        new = iter(network.hidden(step, cache.extend(counts)))
        for row in range(3):
            if counts[row]:
                found[row].append(next(new))
    together = torch.cat([torch.stack(row) for row in found])
    torch.testing.assert_close(together, whole, atol=1e-5, rtol=1e-5)
    cache.keep([2, 0])
    assert cache.lengths == [9, 5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_for_rows_of_any_length_is_the_formula(window: int | None) -> None:
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    single = parts(sum(LENGTHS))
    heads = [torch.nn.functional.pad(part, (0, 56)) for part in single]
    query, key, value = (part.cuda().bfloat16() for part in heads)
    found = PackedCausal(offsets.cuda())(0, query, key, value, scale=0.3, window=window)
    expected = by_formula(offsets, *heads, window, None)
    torch.testing.assert_close(found.cpu().double(), expected, atol=3e-2, rtol=3e-2)
