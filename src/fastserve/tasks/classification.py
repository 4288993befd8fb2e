"""Classification: one label a row, or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastserve.errors import DataError, choices
from fastserve.types import FloatArray, Prediction

if TYPE_CHECKING:
    from torch import Tensor, nn

THRESHOLD = 0.5
"""Probability from which a label counts as given where a row may have several."""


class Classification:
    """Labels in a fixed order; the position of a label is its class index.

    class_weights: how much a row of each label counts in the loss (mean about 1), in the order of `labels`.
    """

    name: ClassVar[str] = "classification"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "accuracy": True, "f1_macro": True}

    def __init__(
        self,
        labels: Sequence[str],
        *,
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.labels = list(labels)
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._index = {label: index for index, label in enumerate(self.labels)}

    @property
    def outputs(self) -> int:
        return len(self.labels)

    @property
    def main_metric(self) -> str:
        return "f1_macro" if self.multi_label else "accuracy"

    def targets(self, labels: Sequence[tuple[str, ...]]) -> npt.NDArray[Any]:
        """int64 (N,) class indices; with several labels a row float32 (N, C) of 0 and 1."""
        unknown = {label for row in labels for label in row} - self._index.keys()
        if unknown:
            word = min(unknown)
            raise DataError(f"label '{word}' is not one of the model's: {choices(word, self.labels)}")
        if not self.multi_label:
            return np.array([self._index[row[0]] for row in labels], np.int64)
        targets = np.zeros((len(labels), self.outputs), np.float32)
        for position, row in enumerate(labels):
            targets[position, [self._index[label] for label in row]] = 1
        return targets

    def loss(self, network: nn.Module, inputs: Mapping[str, Any], targets: Tensor, rows: int | None = None) -> Tensor:
        """The network's own loss where it has one, else cross-entropy (binary and a label at a time for several)."""
        own = getattr(network, "loss", None)
        if own is not None:
            found: Tensor = own(inputs, targets, self, rows)
            return found
        return self.entropy(network(inputs), targets)

    def entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over rows of the cross-entropy of logits (B, outputs), which are taken to float32 first.

        Class weights multiply a row's loss and do not change what the sum is divided by, so that the mean over parts of
        a batch is the mean over the batch.
        """
        import torch
        from torch.nn import functional

        logits = logits.float()
        weight = None if self.class_weights is None else torch.tensor(self.class_weights, device=logits.device)
        if not self.multi_label:
            losses = functional.cross_entropy(
                logits, targets, weight=weight, label_smoothing=self.label_smoothing, reduction="none"
            )
            return losses.mean()
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)

    def score(self, network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Logits (B, outputs)."""
        logits: Tensor = network(inputs)
        return logits

    def quick_metrics(self, scores: FloatArray, targets: npt.NDArray[Any]) -> dict[str, float]:
        probabilities = self.probabilities(scores)
        if self.multi_label:
            truth, predicted = targets > THRESHOLD, probabilities >= THRESHOLD
            right = np.where(truth, probabilities, 1 - probabilities)
            accuracy = float((truth == predicted).all(axis=1).mean())
        else:
            classes = np.arange(self.outputs)
            truth, predicted = targets[:, None] == classes, probabilities.argmax(axis=1)[:, None] == classes
            right = probabilities[np.arange(len(targets)), targets]
            accuracy = float((probabilities.argmax(axis=1) == targets).mean())
        true_positives = (truth & predicted).sum(axis=0)
        f1 = 2 * true_positives / np.maximum(truth.sum(axis=0) + predicted.sum(axis=0), 1)
        loss = float(-np.log(np.maximum(right, 1e-12)).mean())
        return {"loss": loss, "accuracy": accuracy, "f1_macro": float(f1.mean())}

    def probabilities(self, logits: FloatArray) -> FloatArray:
        logits = logits.astype(np.float32, copy=False)
        if self.multi_label:
            return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)  # the sigmoid that cannot overflow
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)

    def decode(self, probabilities: FloatArray) -> list[Prediction]:
        return [self._prediction(row) for row in probabilities.tolist()]

    def _prediction(self, row: list[float]) -> Prediction:
        score = max(row)
        scores = dict(zip(self.labels, row, strict=True))
        if self.multi_label:
            return Prediction([label for label, value in scores.items() if value >= THRESHOLD], score, scores)
        return Prediction(self.labels[row.index(score)], score, scores)


def balanced_weights(counts: npt.NDArray[np.int64]) -> list[float]:
    """Weight of each class, inverse to its frequency, mean 1 over the rows (scikit-learn's 'balanced')."""
    return [float(counts.sum() / (len(counts) * max(count, 1))) for count in counts.tolist()]
