"""The mean of a text's word embeddings through hidden layers (the deep averaging network of Iyyer et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fastserve.config import Fraction, Positive, Section
from fastserve.models.builtin import BUILTIN
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.models.rows import weighted_sum
from fastserve.types import Recipe, TextPreferences


class MlpOptions(Section):
    """`fastserve schema --network mlp`"""

    dim: Positive = Field(128, description="size of a word's embedding")
    hidden: tuple[Positive, ...] = Field((128,), description="size of each hidden layer; none is a linear model")
    dropout: Fraction = Field(0.3, description="before each layer")


class Mlp(nn.Module):
    """Mean of embeddings, then linear layers with ReLU between them."""

    encodings: ClassVar[tuple[str, ...]] = BUILTIN["mlp"].encodings
    preferences: ClassVar[TextPreferences] = BUILTIN["mlp"].preferences
    Options: ClassVar[type[Section]] = MlpOptions

    def __init__(self, options: MlpOptions, shape: NetworkShape) -> None:
        super().__init__()
        self.options = options
        self.sparse_gradients = False
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary["tokens"], options.dim) * 0.1)
        sizes = [options.dim, *options.hidden, shape.outputs]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=5, batch=128, learning_rate=2e-3).for_rows(rows)

    def sparse_parameters(self) -> list[str]:
        return ["embedding"]

    def word_embeddings(self) -> nn.Parameter:
        return self.embedding

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        tokens = inputs["tokens"]
        share = tokens.lengths.clamp_min(1).float().reciprocal()[tokens.rows]  # (N,)
        hidden = weighted_sum(self.embedding, tokens.with_values(tokens.values, share), sparse=self.sparse_gradients)
        for number, layer in enumerate(self.layers):
            hidden = hidden if number == 0 else hidden.relu()
            hidden = layer(functional.dropout(hidden, self.options.dropout, self.training))
        return hidden
