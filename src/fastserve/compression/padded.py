"""Networks as plain functions of padded tensors, which is what exporters can follow.

A network's own forward() reads texts end to end, and looks at their numbers to do so; a graph that is written down once
for all batches cannot. Each form here shares its network's weights and layers and gives the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastserve.errors import ConfigError
from fastserve.models.encoder import Layout, TransformerEncoder, sinusoids
from fastserve.models.mlp import Mlp
from fastserve.models.own import OwnNetwork
from fastserve.models.pretrained import PretrainedEncoder
from fastserve.models.ragged import RaggedTensor
from fastserve.models.textcnn import TextCnn

Logits = Callable[[Any, "PaddedTokens"], Tensor]


class PaddedTokens:
    """Tokens side by side with the part of `RaggedTensor` that networks of padded batches read.

    ids: int64 (B, T); is_token: bool (B, T), true up to each text's end.
    """

    def __init__(self, ids: Tensor, is_token: Tensor) -> None:
        self.ids, self.is_token = ids, is_token

    def padded(self, fill: int = 0) -> tuple[Tensor, Tensor]:
        """`RaggedTensor.padded`; the mask is the caller's to write to."""
        return torch.where(self.is_token, self.ids, fill), self.is_token.clone()

    @property
    def lengths(self) -> Tensor:
        """int64 (B,)"""
        return self.is_token.sum(1)


class PaddedLayout:
    """The part of `encoder.Layout` that a block reads where tokens already stand in the padded form (B, T, D)."""

    def __init__(self, tokens: PaddedTokens) -> None:
        self.texts, self.longest = tokens.ids.shape

    def pad(self, tokens: Tensor) -> Tensor:
        return tokens

    def unpad(self, tokens: Tensor) -> Tensor:
        return tokens


class PaddedForm(nn.Module):
    """A network behind (input_ids, attention_mask), both int64 (B, T), as Hugging Face encoders name them."""

    def __init__(self, network: nn.Module, compute: Logits) -> None:
        super().__init__()
        self.network, self.compute = network, compute

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, float32 (B, outputs)."""
        return self.compute(self.network, PaddedTokens(input_ids, attention_mask != 0))


def padded_form(network: nn.Module, name: str) -> PaddedForm:
    """The form of `network` that can be exported. `name` is for the message of ConfigError, where there is none."""
    for kind, compute in _FORMS.items():
        if isinstance(network, kind):
            return PaddedForm(network.eval().requires_grad_(False), compute)
    # not the LSTM: torch 2.13 writes its output with the number of places of the example, so that graphs do not load
    known = (
        "transformer, textcnn, mlp, Hugging Face folders, and your own modules of forward(ids) or forward(ids, mask)"
    )
    raise ConfigError(f"a '{name}' network cannot be exported to another runtime; these can: {known}")


def longest_text(network: nn.Module) -> int | None:
    """Most tokens that the positions of `network` reach, where that is limited."""
    return network.longest if isinstance(network, PretrainedEncoder) else None


def _through_padding(network: nn.Module, tokens: PaddedTokens) -> Tensor:
    """A network that asks for nothing but `padded`."""
    logits: Tensor = network({"tokens": cast(RaggedTensor, tokens)})
    return logits


def _transformer(network: TransformerEncoder, tokens: PaddedTokens) -> Tensor:
    if network.options.pooling == "cls":
        tokens = _with_first(tokens, network.first_token)
    ids, is_token = tokens.padded()
    hidden = functional.embedding(ids, network.embedding) * math.sqrt(network.options.dim)
    hidden = hidden + sinusoids(ids.shape[1], network.options.dim, hidden)
    is_token[:, 0] = True  # an empty text attends to one padding token instead of to nothing
    layout = cast(Layout, PaddedLayout(tokens))
    for block in network.blocks:
        hidden = block(hidden, layout, is_token[:, None, None])
    hidden = network.norm(hidden)
    pooled = hidden[:, 0] if network.options.pooling == "cls" else _mean(hidden, tokens)
    logits: Tensor = network.output(pooled)
    return logits


def _with_first(tokens: PaddedTokens, first: int) -> PaddedTokens:
    """The id `first` before each text."""
    ids = functional.pad(tokens.ids, (1, 0), value=first)
    return PaddedTokens(ids, functional.pad(tokens.is_token, (1, 0), value=True))


def _mean(vectors: Tensor, tokens: PaddedTokens) -> Tensor:
    """(B, T, D) to the mean over each text (B, D), zero for an empty one."""
    return (vectors * tokens.is_token[..., None]).sum(1) / tokens.lengths.clamp_min(1)[:, None]


def _textcnn(network: TextCnn, tokens: PaddedTokens) -> Tensor:
    logits: Tensor = network.output(network.pooled_plainly(cast(RaggedTensor, tokens)))
    return logits


def _mlp(network: Mlp, tokens: PaddedTokens) -> Tensor:
    hidden = _mean(functional.embedding(tokens.padded()[0], network.embedding), tokens)
    for number, layer in enumerate(network.layers):
        hidden = layer(hidden if number == 0 else hidden.relu())
    return hidden


_FORMS: dict[type[nn.Module], Logits] = {
    TransformerEncoder: _transformer,
    PretrainedEncoder: _through_padding,
    OwnNetwork: _through_padding,
    TextCnn: _textcnn,
    Mlp: _mlp,
}
