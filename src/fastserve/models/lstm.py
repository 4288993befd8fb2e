"""A bidirectional LSTM over word embeddings, with attention pooling (Yang et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastserve.config import Fraction, Positive, Section
from fastserve.models.builtin import BUILTIN
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.models.rows import group, lookup
from fastserve.types import Recipe, TextPreferences


class LstmOptions(Section):
    """`fastserve schema --network lstm`"""

    dim: Positive = Field(128, description="size of a word's embedding")
    hidden: Positive = Field(128, description="size of the state in each direction")
    layers: Positive = 1
    dropout: Fraction = Field(0.3, description="on the embeddings, between layers and before the last layer")


class Lstm(nn.Module):
    """Embedding, LSTM in both directions, a mean weighted by learned attention, linear layer."""

    encodings: ClassVar[tuple[str, ...]] = BUILTIN["lstm"].encodings
    preferences: ClassVar[TextPreferences] = BUILTIN["lstm"].preferences
    Options: ClassVar[type[Section]] = LstmOptions

    def __init__(self, options: LstmOptions, shape: NetworkShape) -> None:
        super().__init__()
        self.options = options
        self.sparse_gradients = False
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary["tokens"], options.dim) * 0.1)
        self.lstm = nn.LSTM(
            options.dim,
            options.hidden,
            options.layers,
            batch_first=True,
            bidirectional=True,
            dropout=options.dropout if options.layers > 1 else 0.0,
        )
        self.attention = nn.Sequential(
            nn.Linear(2 * options.hidden, options.hidden), nn.Tanh(), nn.Linear(options.hidden, 1, bias=False)
        )
        self.output = nn.Linear(2 * options.hidden, shape.outputs)

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=3, batch=64, learning_rate=2e-3).for_rows(rows)

    def sparse_parameters(self) -> list[str]:
        return ["embedding"]

    def word_embeddings(self) -> nn.Parameter:
        return self.embedding

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        tokens = inputs["tokens"]
        mask = tokens.mask()
        embedded = self._drop(self._embedded(tokens, mask))
        lengths = tokens.lengths.clamp_min(1).cpu()  # an empty text is one zero word
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)  # (B, T, 2 * hidden)
        mask[:, 0] = True
        weights = self.attention(states).masked_fill(~mask[..., None], -torch.inf).softmax(1)  # (B, T, 1)
        logits: Tensor = self.output(self._drop((weights * states).sum(1)))
        return logits

    def _embedded(self, tokens: RaggedTensor, mask: Tensor) -> Tensor:
        """(B, T, dim), zero behind each text's end."""
        groups = group(tokens.values)
        words = functional.pad(lookup(self.embedding, groups.unique, sparse=self.sparse_gradients), (0, 0, 0, 1))
        places = torch.full_like(mask, len(groups.unique), dtype=torch.int64)
        places[mask] = groups.places
        return functional.embedding(places, words)

    def _drop(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.options.dropout, self.training)
