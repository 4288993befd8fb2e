"""Judge an encoder by the tokens that it says where some were hidden, to a Report with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import DataError, WorkError
from fastserve.evaluation.bootstrap import DoubleArray, percentile_metric, resample_means
from fastserve.tasks.generation import MOST_NATS
from fastserve.types import LongArray, Metric, Report

_FEW_ROWS = 100


def evaluate_masked(
    sums: npt.NDArray[Any], *, rows: Sequence[int] | LongArray, seed: int = 0, resamples: int = 1000
) -> Report:
    """Loss, perplexity and accuracy of hidden tokens with 95 % bootstrap intervals over texts.

    sums: (N, 3), as of `Masked.score`: nats, right ones and number of each row's hidden tokens; rows: (N,), numbers in
    the user's file, of which pieces of one text have the same. DataError where no token was hidden, WorkError for
    figures that no sound network gives.
    """
    sums = np.asarray(sums, np.float64)
    if not len(sums) or not sums[:, 2].sum():
        raise DataError("there is no text to evaluate on: give a file with at least one row that has a token")
    if not np.isfinite(sums).all():
        raise WorkError(
            "the network gave no numbers for hidden tokens: its weights are damaged or its training diverged; train "
            "again with a lower train.learning_rate"
        )
    texts = _together(sums, np.asarray(rows, np.int64))
    here = _figures(texts.mean(0))
    drawn = _figures(resample_means(texts, resamples, np.random.default_rng(seed)))
    highest = {"accuracy": 1.0}
    metrics: dict[str, Metric] = {
        name: percentile_metric(float(value), drawn[name], highest=highest.get(name, np.inf))
        for name, value in here.items()
    }
    return Report("masked", len(texts), metrics, {"tokens": int(texts[:, 2].sum()), "notes": list(_notes(len(texts)))})


def _together(sums: DoubleArray, rows: LongArray) -> DoubleArray:
    """The sums of whole texts: pieces of one rise and fall together."""
    numbers, text = np.unique(rows, return_inverse=True)
    whole = np.zeros((len(numbers), sums.shape[1]))
    np.add.at(whole, text, sums)
    return whole


def _figures(totals: DoubleArray) -> dict[str, DoubleArray]:
    """totals: (3, ...), nats, right ones and hidden tokens."""
    nats, right, tokens = totals
    loss = nats / np.maximum(tokens, 1e-12)
    return {
        "loss": loss,
        "perplexity": np.exp(np.minimum(loss, MOST_NATS)),
        "accuracy": right / np.maximum(tokens, 1e-12),
    }


def _notes(texts: int) -> Iterator[str]:
    yield (
        "The figures say how well hidden tokens are told from the rest of their text; they compare networks with the "
        "same tokenizer alone."
    )
    if texts < _FEW_ROWS:
        yield f"There are only {texts} texts: the intervals say little. Evaluate on a hundred at least."
