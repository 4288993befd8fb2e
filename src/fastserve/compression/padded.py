"""Networks as plain functions of padded tensors, which is what exporters can follow.

A network's own forward() reads texts end to end, and looks at their numbers to do so; a graph that is written down once
for all batches cannot. Each form here shares its network's weights and layers and gives the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastserve.errors import ConfigError
from fastserve.models.encoder import Block, TransformerEncoder, sinusoids
from fastserve.models.lstm import Lstm
from fastserve.models.mlp import Mlp
from fastserve.models.own import OwnNetwork
from fastserve.models.pretrained import PretrainedEncoder
from fastserve.models.ragged import RaggedTensor
from fastserve.models.textcnn import TextCnn

Logits = Callable[[Any, "PaddedTokens"], Tensor]
_NEVER = -1e9
"""Added to a score: far below any, and finite, so that no row of scores becomes numbers that are none."""


class PaddedTokens:
    """Tokens side by side with the part of `RaggedTensor` that networks of padded batches read.

    ids: int64 (B, T); is_token: bool (B, T), true up to each text's end; longest: what T never exceeds, where known.
    """

    def __init__(self, ids: Tensor, is_token: Tensor, longest: int | None = None) -> None:
        self.ids, self.is_token, self.longest = ids, is_token, longest

    def padded(self, fill: int = 0) -> tuple[Tensor, Tensor]:
        """`RaggedTensor.padded`; the mask is the caller's to write to."""
        return torch.where(self.is_token, self.ids, fill), self.is_token.clone()

    @property
    def lengths(self) -> Tensor:
        """int64 (B,)"""
        return self.is_token.sum(1)


class PaddedForm(nn.Module):
    """A network behind (input_ids, attention_mask), both int64 (B, T), as Hugging Face encoders name them.

    longest: most tokens that a text will have, so that what depends on places alone becomes a constant of the graph.
    """

    def __init__(self, network: nn.Module, compute: Logits, longest: int | None = None) -> None:
        super().__init__()
        self.network, self.compute, self.longest = network, compute, longest

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, float32 (B, outputs)."""
        return self.compute(self.network, PaddedTokens(input_ids, attention_mask != 0, self.longest))


def padded_form(network: nn.Module, name: str, longest: int | None = None) -> PaddedForm:
    """The form of `network` that can be exported. `name` is for the message of ConfigError, where there is none.

    longest: most tokens of a text; None promises nothing.
    """
    for kind, compute in _FORMS.items():
        if isinstance(network, kind):
            return PaddedForm(network.eval().requires_grad_(False), compute, longest)
    known = "transformer, textcnn, mlp, lstm, Hugging Face folders, own modules of forward(ids) or forward(ids, mask)"
    raise ConfigError(f"a '{name}' network cannot be exported to another runtime; these can: {known}")


def _through_padding(network: nn.Module, tokens: PaddedTokens) -> Tensor:
    """A network that asks for nothing but `padded`."""
    logits: Tensor = network({"tokens": cast(RaggedTensor, tokens)})
    return logits


def _transformer(network: TransformerEncoder, tokens: PaddedTokens) -> Tensor:
    """The encoder in as few and plain steps as a runtime can do well: between its products, a graph costs by the step.

    An empty text attends evenly to its padding, whose vectors then do not count.
    """
    dim, heads = network.options.dim, network.options.heads
    if network.options.pooling == "cls":
        tokens = _with_first(tokens, network.first_token)
    length = tokens.ids.shape[1]
    hidden = functional.embedding(tokens.ids, network.embedding) * math.sqrt(dim)
    hidden = hidden + sinusoids(tokens.longest or length, dim, hidden)[:length]
    masked = torch.where(tokens.is_token, 0.0, _NEVER)[:, None, None]  # a choice, which int8 leaves as it is
    for block in cast("Iterable[Block]", network.blocks):
        hidden = hidden + _attention(block, block.attention_norm(hidden), masked, heads)
        hidden = hidden + block.outer(block.inner(block.feedforward_norm(hidden)).relu())
    hidden = network.norm(hidden)
    pooled = hidden[:, 0] if network.options.pooling == "cls" else _mean(hidden, tokens)
    logits: Tensor = network.output(pooled)
    return logits


def _attention(block: Block, hidden: Tensor, masked: Tensor, heads: int) -> Tensor:
    """(B, T, D) to (B, T, D). masked: what is added to scores, 0 for a token and very low behind a text's end."""
    texts, length, dim = hidden.shape
    together = block.query_key_value(hidden).view(texts, length, 3 * heads, dim // heads).transpose(1, 2)
    query, key, value = together.split(heads, 1)  # each (B, H, T, D / H)
    scores = query @ key.transpose(2, 3) * (dim // heads) ** -0.5 + masked
    attended = (scores.softmax(3) @ value).transpose(1, 2).reshape(texts, length, dim)
    output: Tensor = block.attention_output(attended)
    return output


def _with_first(tokens: PaddedTokens, first: int) -> PaddedTokens:
    """The id `first` before each text."""
    ids = functional.pad(tokens.ids, (1, 0), value=first)
    longest = None if tokens.longest is None else tokens.longest + 1
    return PaddedTokens(ids, functional.pad(tokens.is_token, (1, 0), value=True), longest)


def _mean(vectors: Tensor, tokens: PaddedTokens) -> Tensor:
    """(B, T, D) to the mean over each text (B, D), zero for an empty one."""
    counted = tokens.is_token.to(vectors.dtype)
    return (counted[:, None] @ vectors)[:, 0] / counted.sum(1, keepdim=True).clamp_min(1)


def _textcnn(network: TextCnn, tokens: PaddedTokens) -> Tensor:
    logits: Tensor = network.output(network.pooled_plainly(cast(RaggedTensor, tokens)))
    return logits


def _mlp(network: Mlp, tokens: PaddedTokens) -> Tensor:
    hidden = _mean(functional.embedding(tokens.padded()[0], network.embedding), tokens)
    for number, layer in enumerate(network.layers):
        hidden = layer(hidden if number == 0 else hidden.relu())
    return hidden


def _lstm(network: Lstm, tokens: PaddedTokens) -> Tensor:
    """The LSTM as ONNX has it, for a graph only: torch's exporter would unroll it over the places of its example."""
    texts, length = tokens.ids.shape
    hidden = functional.embedding(tokens.ids, network.embedding) * tokens.is_token[..., None]
    hidden = hidden.transpose(0, 1)  # (T, B, dim)
    lengths = tokens.lengths.clamp_min(1).to(torch.int32)  # an empty text is one zero word
    for layer in range(network.options.layers):
        states = torch.onnx.ops.symbolic(
            "LSTM",
            (hidden, *_lstm_parameters(network.lstm, layer), lengths),
            {"hidden_size": network.options.hidden, "direction": "bidirectional"},
            dtype=torch.float32,
            shape=(length, 2, texts, network.options.hidden),
        )
        hidden = states.transpose(1, 2).flatten(2)  # (T, B, 2 * hidden)
    hidden = hidden.transpose(0, 1)
    counted = tokens.is_token | (torch.arange(length) == 0)
    weights = (network.attention(hidden) + torch.where(counted, 0.0, _NEVER)[..., None]).softmax(1)
    logits: Tensor = network.output((weights * hidden).sum(1))
    return logits


def _lstm_parameters(lstm: nn.LSTM, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of inputs and of states, and both biases in a row, each for two directions; gates in ONNX's order."""

    def gates(name: str) -> Tensor:
        entry, forget, cell, exit_ = lstm.get_parameter(name).chunk(4)
        return torch.cat([entry, exit_, forget, cell])

    ends = [f"l{layer}{direction}" for direction in ("", "_reverse")]
    biases = [torch.cat([gates(f"bias_ih_{end}"), gates(f"bias_hh_{end}")]) for end in ends]
    return (
        torch.stack([gates(f"weight_ih_{end}") for end in ends]),
        torch.stack([gates(f"weight_hh_{end}") for end in ends]),
        torch.stack(biases),
    )


_FORMS: dict[type[nn.Module], Logits] = {
    TransformerEncoder: _transformer,
    PretrainedEncoder: _through_padding,
    OwnNetwork: _through_padding,
    TextCnn: _textcnn,
    Mlp: _mlp,
    Lstm: _lstm,
}
