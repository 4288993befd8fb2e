"""Made-up figures of a language model for the tests of this folder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def scored(rows: int, seed: int = 0, *, bits: float = 4.0, spread: float = 0.5) -> Arrays:
    """sums (N, 2) of nats and tokens, sizes (N, 2) of characters and bytes: Chinese with about `bits` a character."""
    rng = np.random.default_rng(seed)
    characters = rng.integers(20, 200, rows)
    tokens = np.maximum(characters * 2 // 3, 1)
    hard = np.random.default_rng(99).normal(0, spread, rows)  # how hard each text is, for every model alike
    nats = characters * np.log(2) * np.maximum(bits + hard + rng.normal(0, 0.05, rows), 0.1)
    return np.stack([nats, tokens], 1).astype(np.float32), np.stack([characters, characters * 3], 1)
