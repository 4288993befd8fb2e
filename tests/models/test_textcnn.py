"""The fast form of the convolution against the plain one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import SHAPE, random_texts, tensors

from fastserve.models.textcnn import TextCnn, TextCnnOptions


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_forward_and_gradients_equal_the_plain_convolution(lengths: list[int], widths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    network = TextCnn(TextCnnOptions(dim=12, filters=5, widths=tuple(widths)), SHAPE)
    tokens = tensors(random_texts(np.random.default_rng(seed), lengths))["tokens"]
    outcomes = []
    for pooled in (network.pooled, network.pooled_plainly):
        network.zero_grad()
        found = pooled(tokens)
        (found * torch.linspace(-1, 2, found.shape[1])).sum().backward()
        outcomes.append([found, *(p.grad for n, p in network.named_parameters() if not n.startswith("output"))])
    for fast, plain in zip(*outcomes, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_it_computes_in_bfloat16_under_autocast() -> None:
    network = TextCnn(TextCnnOptions(dim=12, filters=5), SHAPE).eval()
    encoded = tensors(random_texts(np.random.default_rng(0), [9, 4, 0]))
    exact = network(encoded)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(encoded)
    rough.float().sum().backward()
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.02)
    assert all(parameter.grad is not None for parameter in network.parameters())
