"""The unpadded encoder beside a plain one that reads one text at a time."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from model_samples import SHAPE, build_fitted, random_texts, tensors
from torch import Tensor

from fastserve.models.encoder import Block, EncoderOptions, Layout, TransformerEncoder, sinusoids
from fastserve.models.ragged import RaggedTensor

OPTIONS: dict[str, object] = {"dim": 16, "layers": 2, "heads": 2, "feedforward": 24, "dropout": 0.0}
LENGTHS = [7, 3, 12, 1]


def plain_attention(block: Block, tokens: Tensor) -> Tensor:
    """tokens (T, D)"""
    query, key, value = block.query_key_value(tokens).chunk(3, 1)
    heads = []
    for q, k, v in zip(*(part.chunk(block.heads, 1) for part in (query, key, value)), strict=True):
        heads.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
    return cast(Tensor, block.attention_output(torch.cat(heads, 1)))


def plain_logits(network: TransformerEncoder, ids: Tensor) -> Tensor:
    """ids (T,), pooled by the mean."""
    dim = network.options.dim
    hidden = network.embedding[ids] * math.sqrt(dim)
    hidden = hidden + sinusoids(len(ids), dim, hidden)
    for block in cast("list[Block]", list(network.blocks)):
        hidden = hidden + plain_attention(block, block.attention_norm(hidden))
        hidden = hidden + block.outer(block.inner(block.feedforward_norm(hidden)).relu())
    return cast(Tensor, network.output(network.norm(hidden).mean(0)))


@pytest.mark.parametrize("lengths", [LENGTHS, [5, 5, 5]])
def test_logits_and_gradients_are_those_of_the_plain_form(lengths: list[int]) -> None:
    network = cast(TransformerEncoder, build_fitted("transformer", OPTIONS))
    inputs = tensors(random_texts(np.random.default_rng(0), lengths))
    texts = torch.split(inputs["tokens"].values.long(), lengths)
    found, gradients = [], []
    for logits in (network(inputs), torch.stack([plain_logits(network, ids) for ids in texts])):
        found.append(logits.detach())
        gradients.append(torch.autograd.grad(logits.square().sum(), list(network.parameters())))
    assert found[0].shape == (len(lengths), SHAPE.outputs)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_dropout_leaves_out_the_same_features_at_all_tokens_of_a_text_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = Block(EncoderOptions.model_validate(OPTIONS | {"dim": 400, "dropout": 0.25})).train()
    offsets = torch.tensor([0, *np.cumsum(LENGTHS)])
    layout = Layout(RaggedTensor(torch.ones(int(offsets[-1]), dtype=torch.int64), offsets))
    tokens = torch.full((int(offsets[-1]), 400), 5.0)
    added = block._add(tokens, torch.ones_like(tokens), layout) - tokens
    for text in torch.split(added, LENGTHS):
        assert torch.equal(text, text[:1].expand_as(text))
        assert sorted(set(text[0].tolist())) == pytest.approx([0, 4 / 3], abs=1e-5)
        assert text[0].mean().item() == pytest.approx(1, abs=0.15)
    assert not torch.equal(added[0], added[-1])
    torch.testing.assert_close(block.eval()._add(tokens, tokens, layout), 2 * tokens)
