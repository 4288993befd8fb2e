"""Nested state survives being packed into what JSON can hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastserve.distributed.tree import pack, places, unpack

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(torch.tensor, st.integers(0, 9))
)
KEYS = st.text("a/@#~10.", max_size=4) | st.integers(-2, 12)
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, torch.Tensor):
        return one is other
    return bool(one == other or (one != one and other != other))  # not a number is not itself


@given(STATES)
def test_a_packed_state_comes_back(state: Any) -> None:
    tree, tensors = pack(state, "state")
    again = json.loads(json.dumps(tree))
    assert alike(unpack(again, tensors.__getitem__), state)


@given(STATES)
def test_every_tensor_has_a_name_and_a_place(state: Any) -> None:
    tree, tensors = pack(state, "state")
    found = dict(places(tree))
    assert found.keys() == tensors.keys()
    assert len(found) == sum(1 for _ in places(tree))
    for name, where in found.items():
        value = state
        for key in where:
            value = value[key]
        assert value is tensors[name]


@pytest.mark.parametrize("state", [{"a": object()}, [torch.nn.Linear(1, 1)], {1.5: 0}, {True: 0}, {"a": b"bytes"}])
def test_what_is_not_state_is_refused(state: Any) -> None:
    with pytest.raises(TypeError, match="state"):
        pack(state, "state")
