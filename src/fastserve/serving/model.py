"""What the server needs of a model that labels texts. A bundle and the shipped fake are both such models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastserve.types import FloatArray, Prediction


@dataclass(frozen=True, slots=True)
class ParityRow:
    """A text and what the evaluation of this very model said about it: the probability of each label."""

    text: str
    scores: Mapping[str, float]


class ServedModel(Protocol):
    """A loaded model. `scores` may be called from any one thread at a time."""

    @property
    def labels(self) -> Sequence[str]:
        """The names of the columns of `scores`."""

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels; then scores do not add up to 1."""

    @property
    def max_length(self) -> int:
        """Tokens of a text that are looked at; the rest cannot cost anything."""

    @property
    def runtime(self) -> str:
        """What executes the network."""

    @property
    def tolerance(self) -> float:
        """How much scores may differ from the evaluation's with this runtime's arithmetic."""

    @property
    def parity(self) -> Sequence[ParityRow]:
        """Rows for the gate; without any, only the shape of the answers is checked."""

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """Probabilities, float32 (texts, labels)."""

    def decode(self, scores: FloatArray) -> list[Prediction]:
        """What those probabilities say, one prediction a row."""


@dataclass(frozen=True, slots=True)
class Named:
    """A model as it was asked for: `reference`, served under `name`."""

    name: str
    reference: str
