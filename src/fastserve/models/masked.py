"""The masked form of an encoder: it says which tokens stood where some were hidden.

All its weights but those of the head have the names that they have in the network that labels texts, which can so be
started with them (`model.start`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastserve import config
from fastserve.config import Section
from fastserve.errors import ConfigError
from fastserve.models.builtin import BUILTIN
from fastserve.models.encoder import EncoderBody, EncoderOptions, Layout, with_first
from fastserve.models.network import NetworkShape
from fastserve.models.ragged import RaggedTensor
from fastserve.types import Recipe, TextPreferences


class MaskedEncoder(EncoderBody):
    """The body of `transformer`, and a head whose weights are those of the embedding."""

    encodings: ClassVar[tuple[str, ...]] = BUILTIN["transformer"].encodings
    preferences: ClassVar[TextPreferences] = BUILTIN["transformer"].preferences
    Options: ClassVar[type[Section]] = EncoderOptions

    def __init__(self, options: EncoderOptions, shape: NetworkShape) -> None:
        super().__init__(options, shape.vocabulary["tokens"])
        self.transform = nn.Linear(options.dim, options.dim)
        self.transform_norm = nn.LayerNorm(options.dim)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary["tokens"]))

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        """rows, batch: of full length, so that a step has so many times the longest row's tokens.

        Few texts are read in small steps: on 20,000 reviews the first epoch brought the loss to 7.38 in steps of 32
        rows, and to 7.18 or 7.26 (rates 4e-3 and 2e-3) in steps of 8.
        """
        batch = min(64, max(8, rows // 400))
        return Recipe(epochs=10, batch=batch, learning_rate=2e-3, warmup=0.1, early_stopping=0, bf16=True)

    def first_values(self) -> Iterator[tuple[str, Tensor]]:
        yield from super().first_values()
        yield "bias", torch.zeros(self.bias.shape)

    @property
    def head(self) -> TiedOutput:
        """Vectors (M, D) of `hidden` to logits (M, V)."""
        return TiedOutput(self.embedding, self.bias)

    def hidden(self, tokens: RaggedTensor, places: Tensor) -> Tensor:
        """What the head needs at `places`, int64 (M,), of the N tokens: (M, D)."""
        if self.options.pooling == "cls":
            places = places + tokens.rows[places] + 1
            tokens = with_first(tokens, self.first_token)
        found = self.vectors(tokens, Layout(tokens)).index_select(0, places)
        vectors: Tensor = self.transform_norm(self.transform(found).relu())
        return vectors

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        """Logits of all tokens, (N, V)."""
        tokens = inputs["tokens"]
        logits: Tensor = self.head(self.hidden(tokens, torch.arange(len(tokens.values), device=tokens.values.device)))
        return logits


class TiedOutput(nn.Module):
    """Logits by an embedding's vectors, of which the table may have more, and a bias (V,).

    Made anew whenever it is asked for, and no part of the network: so each parameter has one name and one place.
    """

    def __init__(self, table: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.table, self.bias = table, bias

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.table[: len(self.bias)], self.bias)


FORMS: Mapping[str, type[MaskedEncoder]] = {"transformer": MaskedEncoder}
"""The masked form of a network, by the network's name."""


def masked_form(name: str) -> type[MaskedEncoder]:
    """The masked form of the network that a user named. ConfigError where it has none."""
    if name not in FORMS:
        raise ConfigError(
            f"network '{name}' has no form that learns from masked texts; {', '.join(FORMS)} has: leave model.network "
            "out, or name it"
        )
    return FORMS[name]


def build_masked(name: str, options: Mapping[str, Any], shape: NetworkShape) -> MaskedEncoder:
    """A new one with random weights. ConfigError names an unknown or wrong option."""
    form = masked_form(name)
    return form(config.check(EncoderOptions, options, f"model.options of '{name}'"), shape)
