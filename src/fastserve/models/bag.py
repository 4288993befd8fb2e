"""Hashed n-grams to a linear layer: a TF-IDF linear model, or with a hidden layer the fastText idea."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn, tensor, zeros

from fastserve.config import Fraction, Section
from fastserve.models.builtin import BUILTIN
from fastserve.models.network import MANY_ROWS, NetworkShape
from fastserve.models.ngram_table import (
    LARGE_BATCH,
    SMALL_BATCH,
    NgramNetwork,
    NgramTable,
    annealed,
    both_sides,
    squared_hinge,
)
from fastserve.models.ragged import RaggedTensor
from fastserve.types import ParameterGroup, Recipe, TextPreferences

RATE = 0.1
"""Step for each row. A batch of 64 rows diverged at 0.3 a row on 100,000 reviews, and learned well from 0.1 to 0.15."""
SHARPNESS = 2.0
"""Scores reach 1 and -1 where a text is far from doubt; as logits they are this many times larger."""


class BagOptions(Section):
    """`fastserve schema --network bag`"""

    dim: Annotated[int, Field(ge=0)] = Field(0, description="0: n-grams to labels directly; else a hidden layer")
    dropout: Fraction = Field(0.3, description="on the hidden layer, where there is one")


class Bag(NgramNetwork):
    """With dim 0 the table's rows are the labels' weights, trained by a squared hinge; else ReLU and entropy."""

    encodings: ClassVar[tuple[str, ...]] = BUILTIN["bag"].encodings
    preferences: ClassVar[TextPreferences] = BUILTIN["bag"].preferences
    Options: ClassVar[type[Section]] = BagOptions
    scale: Tensor

    def __init__(self, options: BagOptions, shape: NetworkShape) -> None:
        super().__init__()
        self.options, self.outputs = options, shape.outputs
        width = options.dim or shape.columns
        self.table = NgramTable(shape.vocabulary["ngrams"], width, std=0.1 if options.dim else 0.0)
        self.bias = nn.Parameter(zeros(width))
        self.register_buffer("scale", tensor(1.0 if options.dim else SHARPNESS))
        self.output = nn.Linear(options.dim, shape.outputs) if options.dim else None

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        big = rows >= MANY_ROWS
        return annealed(2, LARGE_BATCH, RATE) if big else annealed(5, SMALL_BATCH, RATE)

    def sparse_parameters(self) -> list[str]:
        return ["table.weight"]

    def parameter_groups(self) -> list[ParameterGroup]:
        if self.output is None:
            return [ParameterGroup(("table.weight",), optimizer="sgd"), ParameterGroup(("bias",), 0.1, "sgd")]
        return [ParameterGroup(tuple(name for name, _ in self.named_parameters()), 3e-3 / RATE)]

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        summed = self._summed(inputs)
        if self.output is None:
            return both_sides(self.scale * summed, self.outputs)
        logits: Tensor = self.output(nn.functional.dropout(summed.relu(), self.options.dropout, self.training))
        return logits

    def loss(self, inputs: Mapping[str, RaggedTensor], targets: Tensor, task: Any, rows: int | None = None) -> Tensor:
        if self.output is not None:
            entropy: Tensor = task.entropy(self(inputs), targets)
            return entropy
        return squared_hinge(self._summed(inputs), targets, task, self.table.likeness, rows)

    def _summed(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        summed: Tensor = self.table(inputs) + self.bias
        return summed
