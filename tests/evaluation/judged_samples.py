"""Made-up answers and probabilities for the tests of this folder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def single(rows: int, labels: int, seed: int = 0, skill: float = 2.0) -> Arrays:
    """One label a row: targets (N,), probabilities (N, C) that sum to 1; more `skill`, fewer mistakes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, labels, rows)
    logits = rng.normal(size=(rows, labels))
    logits[np.arange(rows), targets] += skill
    exponents = np.exp(logits)
    return targets, (exponents / exponents.sum(1, keepdims=True)).astype(np.float32)


def several(rows: int, labels: int, seed: int = 0) -> Arrays:
    """Several labels a row: targets (N, C) of 0 and 1, probabilities (N, C)."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, labels)) < 0.3).astype(np.int64)
    return targets, (rng.random((rows, labels)) * 0.7 + targets * 0.3).astype(np.float32)


def names(labels: int) -> list[str]:
    return [f"label {index}" for index in range(labels)]
