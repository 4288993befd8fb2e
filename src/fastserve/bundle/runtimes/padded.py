"""What runtimes share that compute texts side by side: batches of similar length, and padding. No torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from fastserve.types import Encoded, FloatArray, LongArray, Ragged

Compute = Callable[[LongArray, LongArray], FloatArray]
"""(input_ids, attention_mask), int64 (B, T) each, to logits, float32 (B, outputs)"""


def logits_in_batches(tokens: Ragged, budget: int, compute: Compute) -> FloatArray:
    """The logits of all rows, float32 (N, outputs), in their order.

    Rows of similar length go through `compute` together, at most `budget` tokens with padding; 0: each row alone.
    """
    if len(tokens) <= 1:
        return compute(*pad(tokens))
    parts, order = [], []
    for rows in batches(np.maximum(tokens.lengths, 1), budget):
        parts.append(compute(*pad(tokens.take(rows))))
        order.append(rows)
    result = np.empty((len(tokens), parts[0].shape[1]), np.float32)
    result[np.concatenate(order)] = np.concatenate(parts)
    return result


def pad(tokens: Ragged) -> tuple[LongArray, LongArray]:
    """Ids with 0 behind each row's end, and 1 for a token and 0 behind it: int64 (B, T) each, T at least 1."""
    longest = int(tokens.lengths.max(initial=1))
    mask = np.arange(longest) < tokens.lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = tokens.values
    return ids, mask.astype(np.int64)


def padded_lengths(encoded: Encoded) -> npt.NDArray[np.int64]:
    """int64 (N,): the longest encoding of each row, at least 1."""
    longest: npt.NDArray[np.int64] = np.max([ragged.lengths for ragged in encoded.values()], axis=0, initial=1)
    return longest


def batches(lengths: npt.NDArray[np.int64], budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers in groups of similar length: longest row x rows <= budget, or a single longer row.

    A plain greedy walk over the rows from short to long; ties keep their order, so the groups are reproducible.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for position in range(len(order)):
        if position > start and lengths[order[position]] * (position + 1 - start) > budget:
            yield order[start:position]
            start = position
    if start < len(order):
        yield order[start:]
