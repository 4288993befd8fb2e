"""A transformer encoder from a configuration, with random weights: pre-norm, mean or first-token pooling.

Texts stay end to end in one row of tokens (N, D): the linear layers, norms and activations never see padding. Only
attention looks at a text as a whole and is given the padded form, without a mask where all texts are equally long.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from fastserve.config import Fraction, Positive, Section
from fastserve.models.builtin import BUILTIN
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.models.rows import group, lookup
from fastserve.types import Recipe, TextPreferences


class EncoderOptions(Section):
    """`fastserve schema --network transformer`"""

    dim: Positive = Field(256, description="size of a token's vector")
    layers: Positive = 4
    heads: Positive = Field(4, description="attention heads; must divide dim into even parts")
    feedforward: Positive = Field(1024, description="size of the inner layer of each block")
    dropout: Fraction = Field(0.1, description="share of features left out, the same ones at all tokens of a text")
    pooling: Literal["mean", "cls"] = Field("mean", description="mean of the tokens, or a learned first token")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim ({self.dim}) must be a multiple of 2 * heads ({2 * self.heads})")
        return self


class Layout:
    """Where the tokens of a batch stand: end to end (N,), and in the padded form (B, T)."""

    def __init__(self, tokens: RaggedTensor) -> None:
        lengths = tokens.lengths
        self.texts = len(tokens)
        self.longest = max(int(lengths.max()), 1) if self.texts else 1
        self.rows = tokens.rows  # (N,)
        self.positions = torch.arange(len(self.rows), device=lengths.device) - tokens.offsets[self.rows]  # (N,)
        self.is_full = len(self.rows) == self.texts * self.longest
        self.slots = self.rows * self.longest + self.positions  # (N,)
        self.lengths = lengths

    def attention_mask(self) -> Tensor | None:
        """bool (B, 1, 1, T), or None where nothing is padded."""
        if self.is_full:
            return None
        mask = torch.arange(self.longest, device=self.lengths.device) < self.lengths.clamp_min(1)[:, None]
        return mask[:, None, None]

    def pad(self, flat: Tensor) -> Tensor:
        """(N, D) to (B, T, D)"""
        if not self.is_full:
            flat = flat.new_zeros(self.texts * self.longest, flat.shape[1]).index_copy(0, self.slots, flat)
        return flat.view(self.texts, self.longest, -1)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, T, D) to (N, D)"""
        flat = padded.reshape(self.texts * self.longest, -1)
        return flat if self.is_full else lookup(flat, self.slots, sparse=False)

    def mean(self, flat: Tensor) -> Tensor:
        """(N, D) to the mean of each text (B, D), zero for an empty text."""
        return self.pad(flat).sum(1) / self.lengths.clamp_min(1)[:, None]


class Block(nn.Module):
    """Attention and feed-forward, each on the normalized input and added to it."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.heads, self.dropout = options.heads, options.dropout
        self.attention_norm = nn.LayerNorm(options.dim)
        self.query_key_value = nn.Linear(options.dim, 3 * options.dim)
        self.attention_output = nn.Linear(options.dim, options.dim)
        self.feedforward_norm = nn.LayerNorm(options.dim)
        self.inner = nn.Linear(options.dim, options.feedforward)
        self.outer = nn.Linear(options.feedforward, options.dim)

    def forward(self, tokens: Tensor, layout: Layout, mask: Tensor | None) -> Tensor:
        """tokens (N, D)"""
        tokens = self._add(tokens, self._attention(self.attention_norm(tokens), layout, mask), layout)
        inner = self.inner(self.feedforward_norm(tokens)).relu_()  # a tenth of the step cheaper than GELU
        return self._add(tokens, self.outer(inner), layout)

    def _attention(self, tokens: Tensor, layout: Layout, mask: Tensor | None) -> Tensor:
        padded = layout.pad(self.query_key_value(tokens))  # (B, T, 3 * D)
        parts = padded.view(layout.texts, layout.longest, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        attended = functional.scaled_dot_product_attention(query, key, value, mask)
        output: Tensor = self.attention_output(layout.unpad(attended.transpose(1, 2).flatten(2)))
        return output

    def _add(self, tokens: Tensor, branch: Tensor, layout: Layout) -> Tensor:
        """Leave out the same features at all tokens of a text: a mask for each token would cost more than a product."""
        if not self.training or not self.dropout:
            return tokens + branch
        kept = functional.dropout(tokens.new_ones(layout.texts, tokens.shape[1]), self.dropout)
        return torch.addcmul(tokens, branch, kept.index_select(0, layout.rows))


def random_vectors(rows: int, dim: int) -> Tensor:
    """float32 (rows, dim), of length about 1."""
    return torch.randn(rows, dim) / math.sqrt(dim)


class EncoderBody(nn.Module):
    """Token embedding and sinusoidal positions, blocks, norm: what gives each token a vector.

    vocabulary: how many ids there are. With pooling "cls" the table has one more row, that of the first token.
    """

    def __init__(self, options: EncoderOptions, vocabulary: int) -> None:
        super().__init__()
        self.options = options
        self.sparse_gradients = False
        self.first_token = vocabulary
        extra = 1 if options.pooling == "cls" else 0
        self.embedding = nn.Parameter(random_vectors(self.first_token + extra, options.dim))
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.dim)
        for block in self.blocks:  # so that the sum over all branches keeps its size (Radford et al. 2019)
            for name in ("attention_output", "outer"):
                block.get_parameter(f"{name}.weight").data.div_(self._branches())

    def _branches(self) -> float:
        """What the last weights of a branch are divided by."""
        return math.sqrt(2 * self.options.layers)

    def first_values(self) -> Iterator[tuple[str, Tensor]]:
        yield "embedding", random_vectors(*self.embedding.shape)
        for place, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                fresh = copy.deepcopy(module).to_empty(device="cpu")
                fresh.reset_parameters()
                if place.endswith((".attention_output", ".outer")):
                    fresh.weight.data.div_(self._branches())
                yield from ((f"{place}.{name}", value.detach()) for name, value in fresh.named_parameters())

    def vectors(self, tokens: RaggedTensor, layout: Layout) -> Tensor:
        """A vector for each token, after the last norm: (N, D)."""
        mask = layout.attention_mask()
        hidden = self._embedded(tokens, layout)
        for block in self.blocks:
            hidden = block(hidden, layout, mask)
        normalized: Tensor = self.norm(hidden)
        return normalized

    def _embedded(self, tokens: RaggedTensor, layout: Layout) -> Tensor:
        """(N, D)"""
        groups = group(tokens.values)
        distinct = lookup(self.embedding, groups.unique, sparse=self.sparse_gradients)
        scaled = functional.embedding(groups.places, distinct) * math.sqrt(self.options.dim)
        return scaled + sinusoids(layout.longest, self.options.dim, scaled)[layout.positions]


class TransformerEncoder(EncoderBody):
    """The body, pooling, linear layer."""

    encodings: ClassVar[tuple[str, ...]] = BUILTIN["transformer"].encodings
    preferences: ClassVar[TextPreferences] = BUILTIN["transformer"].preferences
    Options: ClassVar[type[Section]] = EncoderOptions

    def __init__(self, options: EncoderOptions, shape: NetworkShape) -> None:
        super().__init__(options, shape.vocabulary["tokens"])
        self.output = nn.Linear(options.dim, shape.outputs)

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=5, batch=64, learning_rate=1e-3, warmup=0.1, bf16=True).for_rows(rows)

    def sparse_parameters(self) -> list[str]:
        return ["embedding"]

    def word_embeddings(self) -> nn.Parameter:
        return self.embedding

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        tokens = inputs["tokens"]
        if self.options.pooling == "cls":
            tokens = with_first(tokens, self.first_token)
        layout = Layout(tokens)
        hidden = self.vectors(tokens, layout)
        pooled = layout.mean(hidden) if self.options.pooling == "mean" else hidden[tokens.offsets[:-1]]
        logits: Tensor = self.output(functional.dropout(pooled, self.options.dropout, self.training))
        return logits


def with_first(tokens: RaggedTensor, first: int) -> RaggedTensor:
    """The id `first` before each row."""
    offsets = tokens.offsets + torch.arange(len(tokens.offsets), device=tokens.offsets.device)
    values = torch.full((int(offsets[-1]),), first, dtype=torch.int64, device=tokens.values.device)
    is_old = torch.ones_like(values, dtype=torch.bool)
    is_old[offsets[:-1]] = False
    values[is_old] = tokens.values.long()
    return RaggedTensor(values, offsets)


def sinusoids(length: int, dim: int, like: Tensor) -> Tensor:
    """Position vectors of Vaswani et al. 2017: (length, dim), for any length."""
    rate = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length, device=like.device)[:, None] * rate  # (length, dim / 2)
    return torch.cat([angle.sin(), angle.cos()], 1).to(like.dtype)
