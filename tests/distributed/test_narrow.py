"""Numbers that travel as bytes: what they lose, and what is kept whatever they are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastserve.distributed.narrow import BLOCK, LARGEST, mean_in_bytes, narrowed, widened
from fastserve.distributed.world import World, alone_in_group

numbers = st.floats(-(2.0**99), 2.0**99, width=32)


@given(st.lists(st.lists(numbers, min_size=1, max_size=9), min_size=1, max_size=4))
def test_each_number_is_near(found: list[list[float]]) -> None:
    """To half a step of the scale of its block, whatever is in the others."""
    blocks = torch.stack([torch.tensor(values).repeat(BLOCK)[:BLOCK] for values in found])
    error = (widened(narrowed(blocks.view(1, -1))).view_as(blocks) - blocks).abs().amax(1)
    assert (error <= 0.5001 * blocks.abs().amax(1) / LARGEST + 1e-37).all()


def test_what_is_no_number_stays_none() -> None:
    values = torch.ones(1, 3 * BLOCK)
    values[0, 5], values[0, BLOCK] = math.nan, math.inf
    found = widened(narrowed(values))[0]
    assert not found[5].isfinite()
    assert not found[BLOCK].isfinite()
    assert torch.equal(found[2 * BLOCK :], torch.ones(BLOCK))


def test_a_number_takes_a_byte_and_a_block_four_more() -> None:
    assert narrowed(torch.ones(2, 4 * BLOCK)).shape == (2, 4 * (BLOCK + 4))


@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 1])
def test_any_count_of_numbers(count: int) -> None:
    values = torch.linspace(-1, 1, count)
    with alone_in_group(torch.device("cpu")):
        found = mean_in_bytes(values, World())
    assert found.shape == values.shape
    assert torch.allclose(found, values, atol=1 / LARGEST)
