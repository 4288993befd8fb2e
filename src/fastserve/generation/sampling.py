"""How the next token may be chosen: what a user can ask for. No torch; `choosing` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from fastserve.config import Positive, Section

COOLEST = 0.001
"""A lower temperature than this, other than 0, is not told apart from 0 by float32."""


class Sampling(Section):
    """Names, ranges and meanings are those of the OpenAI API and, where that has none, of vLLM."""

    max_tokens: Positive = Field(256, description="most tokens to write; the network's context may end it before")
    temperature: float = Field(
        1.0, ge=0, description="below 1 the probable becomes more probable; 0 always takes the most probable token"
    )
    top_k: int = Field(0, ge=0, description="only the k most probable tokens; 0 is off")
    top_p: float = Field(
        1.0, gt=0, le=1, description="only the smallest set of tokens whose probability reaches p; 1 is off"
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="only tokens at least this many times as probable as the most probable; 0 is off"
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="above 1 what stands in the prompt or was written becomes less probable, by division; 1 is off",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken from the logit of each token that was written; 0 is off"
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken from a token's logit for each time it was written; 0 is off"
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, description="token id to what is added to its logit; -100 forbids it, 100 forces it"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="the same seed gives the same text, whatever else is written beside it"
    )
    stop: tuple[str, ...] = Field(
        (), description="the text ends before any of these strings; one string or several, also across tokens"
    )
    n: Positive = Field(1, description="texts for each prompt")

    @field_validator("temperature")
    @classmethod
    def _told_from_zero(cls, value: float) -> float:
        if 0 < value < COOLEST:
            raise ValueError(f"must be 0 or at least {COOLEST}")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty string would end every text before its first character: leave it out")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[int, float]) -> dict[int, float]:
        if any(token < 0 for token in value):
            raise ValueError("token ids are not negative")
        return value

    @field_validator("n")
    @classmethod
    def _differ(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("temperature") == 0:
            raise ValueError("with temperature 0 all of them would be the same text: set a temperature, or n to 1")
        return value

    @property
    def penalizes(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def draws(self, copy: int = 0) -> np.random.Generator:
        """What one text is drawn with, a number a token. It knows of seed and copy alone, of no neighbor in a batch."""
        entropy = None if self.seed is None else [self.seed, copy]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


@dataclass(frozen=True, slots=True)
class Row:
    """A text that is being written, as far as choosing its next token needs it.

    prompt, written: token ids; draws: its own random numbers.
    """

    sampling: Sampling
    prompt: Sequence[int]
    written: Sequence[int]
    draws: np.random.Generator
