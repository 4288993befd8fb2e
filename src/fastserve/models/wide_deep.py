"""The default: a linear model of n-grams beside convolutions over words, each trained by its own loss, scores added.

The linear part knows spellings and phrases from the first epoch; the convolutions add what words have in common. They
are mixed, not trained as one: a joint loss lets the linear part explain everything and the rest learns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn, stack, tensor, zeros

from fastserve.config import Auto, Fraction, Positive, Section
from fastserve.models.bag import RATE, SHARPNESS
from fastserve.models.builtin import BUILTIN
from fastserve.models.network import MANY_ROWS, NetworkShape
from fastserve.models.ngram_table import NgramNetwork, NgramTable, annealed, both_sides, squared_hinge
from fastserve.models.ragged import RaggedTensor
from fastserve.models.textcnn import TextCnn, TextCnnOptions
from fastserve.types import ParameterGroup, Recipe, TextPreferences

LEARNING_RATE = 2e-3
SMALL_VOCABULARY = 20_000


class WideDeepOptions(Section):
    """`fastserve schema --network wide-deep`"""

    members: Positive = Field(1, description="convolutional networks beside the linear part, averaged")
    dim: Positive | Auto = Field("auto", description="size of a word's embedding; auto: 128 for a small one, else 64")
    filters: Positive | Auto = Field("auto", description="filters of each width; auto: as dim")
    widths: tuple[Positive, ...] = Field((1, 2, 3), description="how many words a filter sees", min_length=1)
    dropout: Fraction = 0.5
    embedding_dropout: Fraction = 0.2
    word_dropout: Fraction = Field(0.2, description="share of words that are taken for unknown ones in training")
    deep_share: float = Field(0.5, gt=0, description="how much the members' logits count beside the linear part's")


class WideDeep(NgramNetwork):
    """logits = scale * linear scores + deep_share * mean of the members' logits.

    Among 1 to 8 times as much of the linear part as of the members, 4 was best or within noise; half of the members'
    logits instead of a double linear part makes the probabilities honest.
    """

    encodings: ClassVar[tuple[str, ...]] = BUILTIN["wide-deep"].encodings
    preferences: ClassVar[TextPreferences] = BUILTIN["wide-deep"].preferences
    Options: ClassVar[type[Section]] = WideDeepOptions
    scale: Tensor
    deep_share: Tensor

    def __init__(self, options: WideDeepOptions, shape: NetworkShape) -> None:
        super().__init__()
        self.options = options
        small = shape.vocabulary["tokens"] < SMALL_VOCABULARY
        dim = (128 if small else 64) if options.dim == "auto" else options.dim
        inner = TextCnnOptions(
            dim=dim,
            filters=dim if options.filters == "auto" else options.filters,
            widths=options.widths,
            dropout=options.dropout,
            embedding_dropout=options.embedding_dropout,
            word_dropout=options.word_dropout,
        )
        self.outputs = shape.outputs
        self.table = NgramTable(shape.vocabulary["ngrams"], shape.columns)
        self.bias = nn.Parameter(zeros(shape.columns))
        self.register_buffer("scale", tensor(SHARPNESS))
        self.register_buffer("deep_share", tensor(options.deep_share))
        self.members = nn.ModuleList(TextCnn(inner, shape) for _ in range(options.members))

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        epochs = min(8, max(2, round(200_000 / max(rows, 1))))
        return annealed(epochs, 64 if rows >= MANY_ROWS else 32, LEARNING_RATE, "adamw")

    def sparse_parameters(self) -> list[str]:
        return ["table.weight", *(f"members.{i}.embedding" for i in range(len(self.members)))]

    def parameter_groups(self) -> list[ParameterGroup]:
        rate = RATE / LEARNING_RATE
        return [ParameterGroup(("table.weight",), rate, "sgd"), ParameterGroup(("bias",), 0.1 * rate, "sgd")]

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        deep = stack([member(inputs) for member in self._members()]).mean(0)
        return both_sides(self.scale * self._scores(inputs), self.outputs) + self.deep_share * deep

    def loss(self, inputs: Mapping[str, RaggedTensor], targets: Tensor, task: Any, rows: int | None = None) -> Tensor:
        """The parts' losses added: they share no parameter, so neither sees the other's."""
        losses = [task.entropy(member(inputs), targets) for member in self._members()]
        return squared_hinge(self._scores(inputs), targets, task, self.table.likeness, rows) + cast(Tensor, sum(losses))

    def _scores(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        scores: Tensor = self.table(inputs) + self.bias
        return scores

    def _members(self) -> list[TextCnn]:
        return [cast(TextCnn, member) for member in self.members]
