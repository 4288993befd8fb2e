"""What a language model needed to write texts that people wrote, checked once so that nothing after it has to doubt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import DataError, WorkError
from fastserve.evaluation.bootstrap import DoubleArray
from fastserve.tasks.generation import MOST_NATS
from fastserve.types import LongArray

FIGURES = ("loss", "perplexity", "bits_per_character", "bits_per_byte")
_FEW_DOCUMENTS = 30


@dataclass(frozen=True)
class Needed:
    """Rows of a corpus, or the documents that they are pieces of. Made by `needed`, which checks it.

    totals: float64 (N, 4), for each its negative log-likelihood in nats, and its counted tokens, characters and bytes;
    rows: int64 (N,), numbers in the user's file; places: int64 (N,), where among the rows given each is found first.
    """

    totals: DoubleArray
    rows: LongArray
    places: LongArray
    texts: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.totals)

    @property
    def bits_per_character(self) -> DoubleArray:
        """(N,); of one without characters 0."""
        return figures(self.totals.T)["bits_per_character"]

    def text(self, index: int) -> str | None:
        return None if self.texts is None else self.texts[int(self.places[index])]

    def documents(self) -> Needed:
        """Pieces of the same document (the same row number) together: they rise and fall together, so that apart they
        would make intervals look too sure. Pieces stay apart where there are too few documents to resample."""
        numbers, first, document = np.unique(self.rows, return_index=True, return_inverse=True)
        if len(numbers) == len(self):
            return self
        if len(numbers) >= _FEW_DOCUMENTS:
            return self.together(document, first)
        return self._spread(document)

    def together(self, document: LongArray, first: LongArray) -> Needed:
        """document: (N,), which of them each row belongs to; first: a row of each."""
        return Needed(_sums(self.totals, document), self.rows[first], self.places[first], self.texts)

    def _spread(self, document: LongArray) -> Needed:
        """Each piece with its document's characters and bytes by its share of the tokens: who cuts a text into rows may
        have counted them at its first row."""
        whole = _sums(self.totals, document)[document]
        sizes = whole[:, 2:] * (self.totals[:, 1] / whole[:, 1])[:, None]
        return Needed(np.hstack([self.totals[:, :2], sizes]), self.rows, self.places, self.texts)


def _sums(totals: DoubleArray, document: LongArray) -> DoubleArray:
    sums = np.zeros((int(document.max()) + 1, totals.shape[1]))
    np.add.at(sums, document, totals)
    return sums


def figures(totals: DoubleArray) -> dict[str, DoubleArray]:
    """totals: (4, ...), nats, tokens, characters and bytes. Every figure by name, (...) each; 0 where none counts."""
    nats, tokens, characters, size = totals
    loss = _ratio(nats, tokens)
    return {
        "loss": loss,
        "perplexity": np.exp(np.minimum(loss, MOST_NATS)),
        "bits_per_character": _ratio(nats, characters) / math.log(2),
        "bits_per_byte": _ratio(nats, size) / math.log(2),
    }


def _ratio(part: DoubleArray, whole: DoubleArray) -> DoubleArray:
    result = np.zeros(np.shape(part))
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def needed(
    sums: npt.NDArray[Any],
    sizes: npt.NDArray[Any],
    *,
    rows: Sequence[int] | LongArray | None = None,
    texts: Sequence[str] | None = None,
) -> Needed:
    """Check shapes and values; rows without a counted token are left out.

    sums: (N, 2), negative log-likelihood in nats and counted tokens; sizes: (N, 2), characters and UTF-8 bytes that
    these stand for. DataError for wrong shapes or nothing to judge, WorkError for sums that no sound model gives.
    """
    sums, sizes = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    count = len(sums)
    for name, array in (("sums", sums), ("sizes", sizes)):
        if array.shape != (count, 2):
            raise DataError(f"{name} have the shape {array.shape}, expected {(count, 2)}: two numbers for each row")
    numbers = np.arange(1, count + 1) if rows is None else np.asarray(rows, np.int64)
    for name, values in (("rows", numbers), ("texts", texts)):
        if values is not None and len(values) != count:
            raise DataError(f"evaluation got sums of {count} rows but {len(values)} {name}: expected one for each row")
    _check_sums(sums, numbers)
    kept = np.flatnonzero(sums[:, 1] > 0)
    totals = np.hstack([sums, sizes])[kept]
    if not totals[:, 2].sum():
        raise DataError("there is no text to evaluate on: give a file with at least one row whose tokens count")
    return Needed(totals, numbers[kept], kept, texts)


def _check_sums(sums: DoubleArray, rows: LongArray) -> None:
    bad = np.flatnonzero(~np.isfinite(sums).all(1))
    if len(bad):
        raise WorkError(
            f"the model gave {sums[bad[0], 0]} nats for row {rows[bad[0]]} ({len(bad)} rows of {len(rows)} are "
            "affected): its weights are damaged or its training diverged; train again with a lower train.learning_rate"
        )
    negative = np.flatnonzero((sums < 0).any(1))
    if len(negative):
        row = negative[0]
        raise WorkError(
            f"row {rows[row]} has {sums[row, 0]:.3g} nats for {sums[row, 1]:.3g} tokens: expected neither below 0; "
            "negative log-likelihoods are meant"
        )
