"""Convolutions of several widths over word embeddings, the maximum over the text, and a linear layer (Kim 2014)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fastserve.config import Fraction, Positive, Section
from fastserve.models.builtin import BUILTIN
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.models.rows import group, lookup
from fastserve.models.strongest import strongest_sums
from fastserve.types import Recipe, TextPreferences

UNKNOWN = 1
"""The id, in the encoding "tokens", of a word that the vocabulary lacks."""


class TextCnnOptions(Section):
    """`fastserve schema --network textcnn`"""

    dim: Positive = Field(128, description="size of a word's embedding")
    filters: Positive = Field(100, description="filters of each width")
    widths: tuple[Positive, ...] = Field((2, 3, 4), description="how many words a filter sees", min_length=1)
    dropout: Fraction = Field(0.5, description="before the last layer")
    embedding_dropout: Fraction = Field(0.0, description="on the embeddings of a batch's distinct words")
    word_dropout: Fraction = Field(0.0, description="share of words that are taken for unknown ones in training")


class TextCnn(nn.Module):
    """A filter starts at every word of the text; behind the text's end it sees zeros."""

    encodings: ClassVar[tuple[str, ...]] = BUILTIN["textcnn"].encodings
    preferences: ClassVar[TextPreferences] = BUILTIN["textcnn"].preferences
    Options: ClassVar[type[Section]] = TextCnnOptions

    def __init__(self, options: TextCnnOptions, shape: NetworkShape) -> None:
        super().__init__()
        self.options = options
        self.sparse_gradients = False
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary["tokens"], options.dim) * 0.1)
        self.convolutions = nn.ModuleList(nn.Conv1d(options.dim, options.filters, width) for width in options.widths)
        for i in range(len(options.widths)):
            nn.init.normal_(self.get_parameter(f"convolutions.{i}.weight"), std=options.dim**-0.5)
        self.output = nn.Linear(options.filters * len(options.widths), shape.outputs)

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=3, batch=128, learning_rate=1e-3, bf16=True).for_rows(rows)

    def sparse_parameters(self) -> list[str]:
        return ["embedding"]

    def word_embeddings(self) -> nn.Parameter:
        return self.embedding

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        pooled = functional.dropout(self.pooled(inputs["tokens"]), self.options.dropout, self.training)
        logits: Tensor = self.output(pooled)
        return logits

    def pooled(self, tokens: RaggedTensor) -> Tensor:
        """The strongest answer of each filter, at least 0: (B, widths * filters).

        A convolution over an embedding is linear, so the product of each filter offset with each distinct word is
        computed once, and a filter's answer is the sum of its offsets' products at neighbouring words.
        """
        groups = group(self._without_some(tokens.values))
        words = lookup(self.embedding, groups.unique, sparse=self.sparse_gradients)  # (U, D)
        words = functional.dropout(words, self.options.embedding_dropout, self.training)
        products = (
            functional.pad(words, (0, 0, 0, 1)) @ self._filters()
        )  # the last word is the zero behind a text's end
        mask = tokens.mask()
        places = torch.full_like(mask, len(groups.unique), dtype=torch.int64)
        places[mask] = groups.places
        strongest = strongest_sums(products, places, mask, self.options.widths)
        return (strongest + self._filter_biases()).relu()

    def _without_some(self, ids: Tensor) -> Tensor:
        """In training some words, at random, become the unknown word, so that no text hangs on one alone."""
        if not self.training or not self.options.word_dropout:
            return ids
        return ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.options.word_dropout, UNKNOWN)

    def _filters(self) -> Tensor:
        """All convolutions as one matrix: (D, offsets * filters), by width, then offset, then filter."""
        weights = [self.get_parameter(f"convolutions.{i}.weight") for i in range(len(self.convolutions))]
        return torch.cat([weight.permute(1, 2, 0).flatten(1) for weight in weights], 1)

    def _filter_biases(self) -> Tensor:
        return torch.cat([self.get_parameter(f"convolutions.{i}.bias") for i in range(len(self.convolutions))])

    def pooled_plainly(self, tokens: RaggedTensor) -> Tensor:
        """The strongest answer of each filter, at least 0: (B, widths * filters)."""
        ids, mask = tokens.padded()
        embedded = (self.embedding[ids] * mask[..., None]).transpose(1, 2)  # (B, D, T)
        found = []
        for width, convolution in zip(self.options.widths, self.convolutions, strict=True):
            answers = convolution(functional.pad(embedded, (0, width - 1))).relu()  # (B, F, T)
            found.append((answers * mask[:, None]).amax(2))
        return torch.cat(found, 1)
