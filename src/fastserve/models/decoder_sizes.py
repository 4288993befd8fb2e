"""Decoders by their size, the one dial: depth, width, rows in a step and learning rate follow from it."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from fastserve.config import Auto, Positive, Section
from fastserve.models.builtin import BUILTIN
from fastserve.models.decoder import CONTEXT, DIM, LAYERS, Decoder, DecoderOptions, hidden_weights
from fastserve.types import Recipe, TextPreferences

TOKENS_PER_WEIGHT = 20
"""Where the loss is lowest for the computation (Hoffmann et al. 2022, arXiv 2203.15556)."""
SPIKE = 3.0
"""Times the usual loss: so much is no hard text."""
EPOCHS = 4
"""Up to so many, tokens read again teach almost as much as new ones (Muennighoff et al. 2023, arXiv 2305.16264)."""


class Decoder15mOptions(DecoderOptions):
    """`fastserve schema --network decoder-15m`"""

    layers: Positive = Field(8, description=LAYERS)
    dim: Positive = Field(384, description=DIM)


class Decoder125mOptions(DecoderOptions):
    """`fastserve schema --network decoder-125m`"""

    layers: Positive = Field(16, description=LAYERS)
    dim: Positive = Field(768, description=DIM)
    context: Positive = Field(2_048, description=CONTEXT)


class Decoder1bOptions(DecoderOptions):
    """`fastserve schema --network decoder-1b`"""

    layers: Positive = Field(20, description=LAYERS)
    dim: Positive = Field(2_048, description=DIM)
    heads: Positive | Auto = Field(16, description="query heads; auto: dim / 64")
    feedforward: Positive | Auto = Field(5_632, description="inner size of a block; auto: 8 / 3 of dim")
    context: Positive = Field(2_048, description=CONTEXT)


class Decoder15m(Decoder):
    """15.7 million weights with a vocabulary of 8,192."""

    preferences: ClassVar[TextPreferences] = BUILTIN["decoder-15m"].preferences
    Options: ClassVar[type[Section]] = Decoder15mOptions

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return recipe_of(Decoder15mOptions(), rows)


class Decoder125m(Decoder):
    """126 million weights with a vocabulary of 32,768."""

    preferences: ClassVar[TextPreferences] = BUILTIN["decoder-125m"].preferences
    Options: ClassVar[type[Section]] = Decoder125mOptions

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return recipe_of(Decoder125mOptions(), rows)


class Decoder1b(Decoder):
    """1.04 billion weights with a vocabulary of 65,536."""

    preferences: ClassVar[TextPreferences] = BUILTIN["decoder-1b"].preferences
    Options: ClassVar[type[Section]] = Decoder1bOptions

    @classmethod
    def recipe(cls, rows: int, outputs: int) -> Recipe:
        return recipe_of(Decoder1bOptions(), rows)


def recipe_of(options: DecoderOptions, rows: int) -> Recipe:
    """How a decoder with these options is trained on as many tokens as `rows` full contexts have.

    The learning rate is 1.79 * N^-0.713 * D^0.307 and a step has 0.58 * D^0.571 tokens, for N weights between embedding
    and head and D tokens that are read: fitted to 3,700 runs with warm-up, cosine, betas of 0.9 and 0.95 and a weight
    decay of 0.1 (Li et al. 2025, arXiv 2503.04715).
    """
    weights = hidden_weights(options)
    tokens = max(rows, 1) * options.context
    epochs = min(max(math.ceil(TOKENS_PER_WEIGHT * weights / tokens), 1), EPOCHS)
    read = tokens * epochs
    return Recipe(
        epochs=epochs,
        batch=max(round(0.58 * read**0.571 / options.context), 1),
        learning_rate=1.79 * weights**-0.713 * read**0.307,
        weight_decay=0.1,
        warmup=0.05,
        schedule="cosine",
        keep="best",
        bf16=True,
        optimizer="muon",
        betas=(0.9, 0.95),
        spike=SPIKE,
    )
