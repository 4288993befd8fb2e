"""Whether a network in another form answers as well as its own weights do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.bundle.predictor import PARITY_TOLERANCE
from fastserve.errors import WorkError
from fastserve.types import FloatArray

THRESHOLD = 0.5
"""Probability from which a label counts as given where a text may have several."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a form may lose. max_drop: accuracy, as a share; min_agreement: share of texts with the same answer."""

    max_drop: float = 0.005
    min_agreement: float = 0.97


@dataclass(frozen=True, slots=True)
class Check:
    """Two forms of one network on the same texts. The accuracies are None where no labels were known.

    agreement: share of texts with the same answer; the differences are those of probabilities.
    """

    texts: int
    agreement: float
    max_difference: float
    mean_difference: float
    accuracy_torch: float | None = None
    accuracy: float | None = None

    def figures(self) -> dict[str, float]:
        """What was computed, for `RuntimeFile.check`."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: float(value) for name, value in found.items() if value is not None}

    @property
    def is_same(self) -> bool:
        """Whether probabilities agree to rounding."""
        return self.max_difference <= PARITY_TOLERANCE

    def passes(self, limits: Limits) -> bool:
        """Whether the form may stand for the weights: it computes the same, or labels show that it is as good."""
        if self.is_same:
            return True
        if self.accuracy is None or self.accuracy_torch is None:
            return False
        drop = self.accuracy_torch - self.accuracy
        return drop <= limits.max_drop + 1e-9 and self.agreement >= limits.min_agreement

    def describe(self) -> str:
        """One line for a person."""
        known = ""
        if self.accuracy is not None and self.accuracy_torch is not None:
            known = f"accuracy {self.accuracy:.2%} (torch {self.accuracy_torch:.2%}), "
        return (
            f"{known}same answer for {self.agreement:.2%} of {self.texts:,} texts, probabilities differ by "
            f"{self.mean_difference:.2g} on average and at most {self.max_difference:.2g}"
        )


def compare(reference: FloatArray, found: FloatArray, targets: npt.NDArray[Any] | None, *, multi_label: bool) -> Check:
    """Probabilities (N, C) of the weights and of the other form, at least one row.

    targets: int64 (N,), or (N, C) of 0 and 1 with several labels a text. WorkError where `found` is not finite.
    """
    if not np.isfinite(found).all():
        raise WorkError("the exported network gives values that are not numbers; it was not kept")
    difference = np.abs(reference - found)
    before, after = (_answers(scores, multi_label) for scores in (reference, found))
    return Check(
        texts=len(found),
        agreement=_share(before, after),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        accuracy_torch=None if targets is None else _share(before, targets),
        accuracy=None if targets is None else _share(after, targets),
    )


def _answers(probabilities: FloatArray, multi_label: bool) -> npt.NDArray[Any]:
    return probabilities >= THRESHOLD if multi_label else probabilities.argmax(1)


def _share(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    """Of rows that are equal."""
    same = left == right
    return float((same.all(1) if same.ndim == 2 else same).mean())
