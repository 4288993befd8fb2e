"""A table over hashed n-grams: the values that stand for a text, and which rows are kept.

The hash has far more rows than a data set has n-grams that help, so only rows that two training texts share are kept;
a text's other n-grams count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastserve.models.network import MANY_ROWS
from fastserve.models.ragged import RaggedTensor
from fastserve.models.rows import weighted_sum
from fastserve.types import Encoded, Ragged, Recipe

VALUED = "ngrams as table rows"
SMALL_BATCH, LARGE_BATCH = 32, 96
MOST_LIKENESS = 3.0
"""Real batches have 1.2 to 2.7. Where 600,000 texts were made of few words, full steps diverged."""
MIN_TEXTS = 2
"""An n-gram seen in fewer training texts is left out."""


class NgramTable(nn.Module):
    """Sum of value * weight[row] over a text's n-grams.

    value = (1 + log(count)) * idf, then characters (even ids) and words (odd ids) are each scaled to length sqrt(1/2).
    kept: int32 (M,), the ids that have a row, ascending; idf: float32 (M,); weight: float32 (M, width). No id has a row
    before `fit_statistics` or the loading of a state: a table of all ids would not fit the memory.
    """

    kept: Tensor
    idf: Tensor
    row_of: Tensor

    def __init__(self, size: int, width: int, *, std: float = 0.0) -> None:
        super().__init__()
        self.size, self.width, self.std = size, width, std
        self.is_linear = std == 0  # and then trained by plain gradient descent
        self.sparse_gradients = False
        self.likeness = 1.0
        """How alike the rows of a batch are: the largest eigenvalue of their products with each other. 1: not at all,
        the number of rows: they are the same. As far as they are alike, steps for each row add up."""
        self.register_buffer("kept", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("idf", torch.zeros(0))
        self.register_buffer("row_of", torch.full((1,), -1, dtype=torch.int32), persistent=False)
        self.weight = nn.Parameter(self._fresh(0))

    def _fresh(self, rows: int) -> Tensor:
        weight = torch.zeros(rows, self.width)
        return weight.normal_(std=self.std) if self.std else weight

    def fit_statistics(self, blocks: Iterable[tuple[Encoded, Any]]) -> None:
        """Count in how many texts each n-gram is; keep those of at least two, and weigh rare ones more."""
        texts, counts = 0, np.zeros(self.size, np.int32)
        sample: Ragged | None = None
        for inputs, _ in blocks:
            texts += len(inputs["ngrams"])
            sample = sample or inputs["ngrams"]
            counts += np.bincount(inputs["ngrams"].values, minlength=self.size)  # each is listed once in a text
        kept = np.flatnonzero(counts >= min(MIN_TEXTS, texts))
        idf = np.log((1 + texts) / (1 + counts[kept])) + 1
        self._keep(torch.from_numpy(kept.astype(np.int32)), self._fresh(len(kept)))
        self.idf = torch.from_numpy(idf.astype(np.float32)).to(self.idf.device)
        if sample is not None and len(sample):
            self.likeness = self._likeness(sample, LARGE_BATCH if texts >= MANY_ROWS else SMALL_BATCH)

    def _likeness(self, ngrams: Ragged, batch: int) -> float:
        """The `likeness` of `batch` rows that are spread over `ngrams`."""
        rows = np.unique(np.linspace(0, len(ngrams) - 1, batch).astype(np.int64))
        ready = self.valued(RaggedTensor.from_ragged(ngrams.take(rows)).to(self.idf.device)).cpu_ragged()
        columns, places = np.unique(ready.values, return_inverse=True)
        matrix = np.zeros((len(rows), len(columns)), np.float32)
        matrix[np.repeat(np.arange(len(rows)), ready.lengths), places] = ready.weights
        return max(1.0, float(np.linalg.eigvalsh(matrix @ matrix.T)[-1]))

    def _keep(self, kept: Tensor, weight: Tensor) -> None:
        """Change which ids have a row. The parameter stays the same object, for an optimizer that holds it."""
        device = self.weight.device
        self.kept = kept.to(device)
        beyond = int(kept[-1]) + 1 if len(kept) else 0  # no id from here on has a row
        self.row_of = torch.full((beyond + 1,), -1, dtype=torch.int32, device=device)
        self.row_of[self.kept.long()] = torch.arange(len(kept), dtype=torch.int32, device=device)
        self.weight.data = weight.to(device)
        self.weight.grad = None

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        kept = state.get(f"{prefix}kept")
        if kept is not None and not (len(kept) == len(self.kept) and torch.equal(kept.to(self.kept), self.kept)):
            self._keep(kept, torch.zeros(len(kept), self.width))
            self.idf = torch.ones(len(kept), device=self.weight.device)
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, inputs: Mapping[str, RaggedTensor]) -> Tensor:
        """(B, width), from "ngrams" or from what `precompute` made of them."""
        return self.summed(self.weight, self.ready(inputs))

    def ready(self, inputs: Mapping[str, RaggedTensor]) -> RaggedTensor:
        """Table rows and values of the texts, computed here or before."""
        return inputs[VALUED] if VALUED in inputs else self.valued(inputs["ngrams"])

    def summed(self, weight: Tensor, ready: RaggedTensor) -> Tensor:
        """(B, D): each text's sum of value * weight[row]; weight: (M, D)."""
        return weighted_sum(weight, ready, sparse=self.sparse_gradients, repeats=self.is_linear)

    def precompute(self, inputs: Encoded) -> Encoded:
        """Table rows and values instead of n-grams and counts; other encodings stay."""
        ready = self.valued(RaggedTensor.from_ragged(inputs["ngrams"]).to(self.idf.device)).cpu_ragged()
        return {VALUED: ready, **{name: ragged for name, ragged in inputs.items() if name != "ngrams"}}

    def valued(self, ngrams: RaggedTensor) -> RaggedTensor:
        """Rows of the table instead of ids, values instead of counts."""
        # index_select takes a quarter of the time of an index in brackets here
        places = self.row_of.index_select(0, ngrams.values.clamp_max(len(self.row_of) - 1))
        kept = (places >= 0).nonzero().flatten()
        places, rows = places.index_select(0, kept), ngrams.rows.index_select(0, kept)
        values = self.idf.index_select(0, places)
        if ngrams.weights is not None:
            values *= ngrams.weights.index_select(0, kept).log_().add_(1)
        kind = (ngrams.values.index_select(0, kept) & 1) + 2 * rows
        squares = torch.zeros(2 * len(ngrams), device=values.device).index_add_(0, kind, values.square())
        values *= (2 * squares.clamp_min(1e-12)).rsqrt().index_select(0, kind)
        offsets = nn.functional.pad(torch.bincount(rows, minlength=len(ngrams)).cumsum(0), (1, 0))
        return RaggedTensor(places, offsets, values)


class NgramNetwork(nn.Module):
    """What networks over a table of n-grams share. A subclass makes `table`."""

    table: NgramTable

    @property
    def sparse_gradients(self) -> bool:
        return self.table.sparse_gradients

    @sparse_gradients.setter
    def sparse_gradients(self, wanted: bool) -> None:
        for module in self.modules():
            if module is not self and hasattr(module, "sparse_gradients"):
                setattr(module, "sparse_gradients", wanted)  # noqa: B010 - of a kind that is not known here

    def fit_statistics(self, encoded: Iterable[tuple[Encoded, Any]]) -> None:
        """Weigh n-grams by how rare they are, and forget those of a single text."""
        self.table.fit_statistics(encoded)

    def precompute(self, inputs: Encoded) -> Encoded:
        """See `NgramTable.precompute`."""
        return self.table.precompute(inputs)


def annealed(epochs: int, batch: int, learning_rate: float, optimizer: str = "sgd") -> Recipe:
    """Few epochs whose learning rate falls to nothing: the last weights are the ones to keep."""
    return Recipe(
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        optimizer=optimizer,
        weight_decay=0.0,
        warmup=0.0,
        gradient_clip=0.0,
        keep="last",
        early_stopping=0,
    )


def both_sides(scores: Tensor, outputs: int) -> Tensor:
    """Logits (B, outputs) of scores (B, `NetworkShape.columns`): the one column of two labels is the second's."""
    return scores if scores.shape[1] == outputs else torch.cat([-scores, scores], 1)


def squared_hinge(scores: Tensor, targets: Tensor, task: Any, likeness: float = 1.0, rows: int | None = None) -> Tensor:
    """Mean over rows of the sum over labels of max(0, margin - y * score) squared, y = 1 for a row's labels, else -1.

    scores: (B, `NetworkShape.columns`); one column for two labels is trained as each of two would be.
    Its gradient is `rows` times that of the mean (of the sum over rows, where they are all of a step), so that the
    learning rate is a step for each row, whatever the batch; less where the rows' likeness would make the steps of a
    batch overshoot.
    The margin is 1 less `task.label_smoothing`; `task.class_weights` weigh rows (with several labels a row, labels).
    """
    is_label = _is_label(targets, scores.shape[1], task)
    weight = None
    if task.class_weights is not None:
        weight = scores.new_tensor(task.class_weights)
        weight = 1 + is_label * (weight - 1) if task.multi_label else weight[targets, None]
    steps = (rows or len(scores)) * min(1.0, MOST_LIKENESS / likeness)
    labels = 2 if scores.shape[1] == 1 and not task.multi_label else 1  # that a column stands for
    parts = (scores, 2 * is_label - 1, weight, 1 - task.label_smoothing, labels, steps)
    loss: Tensor = _SquaredHinge.apply(*parts)  # type: ignore[no-untyped-call]
    return loss


class _SquaredHinge(torch.autograd.Function):
    """`labels` times the mean over rows; the gradient is `steps` times that of the mean.

    Computed at once: the step of a linear model is so short that each operation that autograd knows of counts.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, signs: Tensor, weight: Tensor | None, margin: float, labels: int, steps: float
    ) -> Tensor:
        lacking = (margin - signs * scores).relu_()
        weighted = lacking if weight is None else lacking * weight
        ctx.save_for_backward((weighted * signs).mul_(-2 * steps / len(scores)))
        return (weighted * lacking).sum().mul_(labels / len(scores))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (found,) = ctx.saved_tensors
        return found * gradient, None, None, None, None, None


def _is_label(targets: Tensor, columns: int, task: Any) -> Tensor:
    """1 where a column is a row's label, else 0: float32 (B, columns)."""
    if task.multi_label:
        return targets.float()
    return targets.float()[:, None] if columns == 1 else nn.functional.one_hot(targets, columns).float()
