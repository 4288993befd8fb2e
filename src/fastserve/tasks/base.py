"""The seam between the training loop and what is being learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy.typing as npt

from fastserve.types import FloatArray, Prediction

if TYPE_CHECKING:
    from torch import Tensor, nn


class Task(Protocol):
    """What the loop, the bundle and the evaluation ask of a task.

    The loss may import torch; everything else is numpy, since servers without torch use it.
    """

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, bool]]
    """Names of what `quick_metrics` returns, and whether more is better."""

    @property
    def main_metric(self) -> str:
        """What `metric: auto` means."""

    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        """The mean loss of a batch, a scalar with a gradient: each row counts the same, whatever the batch.

        rows: of the whole step, where the batch is one worker's part of it.
        """

    def score(self, network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """What an evaluation keeps of each row of a batch, (B, any): logits, or sums that metrics are made of."""

    def quick_metrics(self, scores: FloatArray, targets: npt.NDArray[Any]) -> dict[str, float]:
        """A few figures for the evaluation inside a run, from `score` and `targets` of all its rows."""


class LabelTask(Task, Protocol):
    """A task whose answers are labels with probabilities, which is all that a server of labels needs to know."""

    @property
    def outputs(self) -> int:
        """How many logits a row has."""

    def targets(self, labels: Sequence[tuple[str, ...]]) -> npt.NDArray[Any]:
        """Labels of rows as the array that `loss` takes."""

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Logits (N, outputs) to probabilities of the same shape."""

    def decode(self, probabilities: FloatArray) -> list[Prediction]:
        """Probabilities (N, outputs) to answers."""
