"""Hashed n-grams to a linear layer: the fastText idea, and a TF-IDF linear model, as one network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fastserve.config import Fraction, Section
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.models.rows import weighted_sum
from fastserve.types import Encoded, Recipe, TextPreferences


class BagOptions(Section):
    """`fastserve schema --network bag`"""

    dim: Annotated[int, Field(ge=0)] = Field(0, description="0: n-grams to labels directly; else a hidden layer")
    dropout: Fraction = Field(0.0, description="share of a text's n-grams left out in training")
    idf: bool = Field(True, description="rare n-grams count more, by log((1 + texts) / (1 + texts that have it)) + 1")


class Bag(nn.Module):
    """logits = output(sum of value * weight[id]), where a text's values have length 1.

    value = (1 + log(count)) * idf. With dim 0 there is no output layer: the table's rows are the labels' weights.
    """

    encodings: ClassVar[tuple[str, ...]] = ("ngrams",)
    preferences: ClassVar[TextPreferences] = TextPreferences()
    Options: ClassVar[type[Section]] = BagOptions
    idf: Tensor

    def __init__(self, options: BagOptions, shape: NetworkShape) -> None:
        super().__init__()
        self.options = options
        self.sparse_gradients = False
        width = options.dim or shape.outputs
        size = shape.vocabulary["ngrams"]
        self.weight = nn.Parameter(torch.zeros(size, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.output = nn.Linear(options.dim, shape.outputs) if options.dim else None
        if options.dim:
            nn.init.normal_(self.weight, std=1 / math.sqrt(options.dim))
        self.register_buffer("idf", torch.ones(size))

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return Recipe(epochs=3, batch=256, learning_rate=0.02, weight_decay=0.0, warmup=0.0)

    def sparse_parameters(self) -> list[str]:
        return ["weight"]

    def fit_statistics(self, encoded: Iterable[tuple[Encoded, Any]]) -> None:
        """Count in how many texts each n-gram is."""
        if not self.options.idf:
            return
        texts, counts = 0, torch.zeros(self.idf.shape[0], dtype=torch.int64)
        for inputs, _ in encoded:
            ngrams = inputs["ngrams"]
            texts += len(ngrams)
            counts += torch.bincount(torch.from_numpy(ngrams.values), minlength=len(counts))
        self.idf.copy_(torch.log((1 + texts) / (1 + counts)) + 1)

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        ngrams = inputs["ngrams"]
        summed = weighted_sum(self.weight, self._valued(ngrams), sparse=self.sparse_gradients) + self.bias
        return summed if self.output is None else self.output(summed)

    def _valued(self, ngrams: RaggedTensor) -> RaggedTensor:
        """The n-grams with their values instead of their counts."""
        values = self.idf[ngrams.values.long()]
        if ngrams.weights is not None:
            values = values * (1 + torch.log(ngrams.weights))
        squares = torch.segment_reduce(values.square(), "sum", offsets=ngrams.offsets, initial=0)
        values = values * squares.clamp_min(1e-12).rsqrt()[ngrams.rows]
        return ngrams.with_values(ngrams.values, nn.functional.dropout(values, self.options.dropout, self.training))
