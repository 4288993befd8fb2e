"""Training, validation and test rows: stratified, by a seed, and no text on two sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from fastserve import log
from fastserve.config import DataConfig
from fastserve.data.blocks import Block
from fastserve.data.dataset import Dataset, open_dataset
from fastserve.data.index import Index, check_labels, index_rows
from fastserve.data.keys import first_of_each, is_among
from fastserve.errors import DataError
from fastserve.types import LongArray

AUTO_SHARE, AUTO_FEWEST, AUTO_MOST = 0.05, 200, 2000
"""Rows held out are rows not learned from: enough to judge by (within 2 points at 2,000), and no more than a fifth."""
REMEMBER = 32 << 20
"""Characters of texts kept in memory between the passes over a file; they take up to four bytes each."""
_AT_ONCE = 1 << 20
_SALT = 0x5911  # another stream than that of the batches, which have the same seed

BoolArray = npt.NDArray[np.bool_]


class Rows(Protocol):
    """Some rows in a block."""

    def __len__(self) -> int: ...

    def take(self, index: npt.NDArray[np.integer[Any]], /) -> Self: ...


B = TypeVar("B", bound=Rows, covariant=True)


class Readable(Protocol[B]):
    """A data set that gives the same blocks each time it is read."""

    @property
    def address(self) -> str: ...

    def blocks(self) -> Iterator[B]: ...


def chosen_blocks(source: Readable[B], chosen: BoolArray) -> Iterator[B]:
    """The chosen rows, in the order of the file. chosen: bool (usable rows of the data set,)."""
    position = 0
    for block in source.blocks():
        end = position + len(block)
        kept = np.flatnonzero(chosen[position:end])
        position = end
        if len(kept):
            yield block if len(kept) == len(block) else block.take(kept)
    if position != len(chosen):
        raise DataError(
            f"{source.address} changed while it was used: it had {len(chosen):,} usable rows, now it has "
            f"{position:,}; run again"
        )


@dataclass(frozen=True)
class Part:
    """Some rows of a data set. chosen: bool (usable rows of the data set,)."""

    dataset: Dataset
    index: Index
    chosen: BoolArray

    def __len__(self) -> int:
        return int(self.chosen.sum())

    @property
    def label_counts(self) -> dict[str, int]:
        return self.index.counts_of(self.chosen)

    def blocks(self) -> Iterator[Block]:
        """The rows of this part, in the order of the file."""
        return chosen_blocks(self.dataset, self.chosen)


@dataclass(frozen=True)
class Splits:
    """validation and test are None where there are none. leaked: training rows whose text is also held out."""

    train: Part
    validation: Part | None
    test: Part | None
    labels: list[str]
    multi_label: bool
    leaked: int

    def to_json(self) -> dict[str, Any]:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = {name: None if part is None else len(part) for name, part in parts.items()}
        bad = {name: part.dataset.bad_rows.to_json() for name, part in parts.items() if part is not None}
        return {"rows": rows, "labels": self.train.label_counts, "leaked": self.leaked, "bad_rows": bad}


def load_splits(config: DataConfig, seed: int, keep: Sequence[str] | None = ()) -> Splits:
    """Open the files of a configuration, read each once, and settle which row serves for what.

    keep: extra columns that the validation and test rows carry, where their files have them; None for all.
    """
    if config.train is None:
        raise DataError("no training data: data.train=FILE names it")
    train = open_dataset(config.train, config, keep=keep)
    train.remember = REMEMBER
    index = index_rows(train)
    check_labels(index, train)
    labels = list(index.label_counts)
    validation = _held_out(config.validation, train, config, labels) if is_file(config.validation) else None
    test = _held_out(config.test, train, config, labels) if config.test else None
    held = [part.index.keys for part in (validation, test) if part is not None]
    chosen, leaked = without_leaks(index.keys, index.rows, held, train.address, config.duplicates)
    if not is_file(config.validation):
        taken = _split_off(index, chosen, config.validation, seed)
        validation = Part(train, index, taken) if taken.any() else None
        chosen = chosen & ~taken
    _check_left(index, train, chosen)
    return Splits(Part(train, index, chosen), validation, test, labels, train.multi_label, leaked)


def is_file(validation: str | float) -> bool:
    return isinstance(validation, str) and validation != "auto"


def _held_out(address: str | float, train: Dataset, config: DataConfig, labels: list[str]) -> Part:
    dataset = open_dataset(str(address), config, known_labels=labels, mapped=train.mapped)
    dataset.remember = REMEMBER
    dataset.keep = tuple(name for name in train.keep if name in dataset.available)
    index = index_rows(dataset)
    return Part(dataset, index, np.ones(len(index), bool))


def without_leaks(
    keys: LongArray, rows: npt.NDArray[np.integer[Any]], held: list[LongArray], address: str, duplicates: str
) -> tuple[BoolArray, int]:
    """Which training rows stay, and how many have a text that is held out. rows: their lines in the file."""
    if not held:
        return np.ones(len(keys), bool), 0
    leaks = is_among(keys, np.concatenate(held))
    count = int(leaks.sum())
    if not count:
        return ~leaks, 0
    first = ", ".join(map(str, rows[leaks][:10].tolist())) + (", …" if count > 10 else "")
    found = f"{address}: {count:,} training texts are also in the validation or test data (rows {first})"
    if duplicates == "refuse":
        raise DataError(f"{found}; remove them, or let data.duplicates=drop leave them out of training")
    if duplicates == "keep":
        log.warn(f"{found} and are kept: the figures will flatter (data.duplicates=drop leaves them out)")
        return np.ones(len(keys), bool), count
    log.say(f"{found}; they are left out of training")
    return ~leaks, count


def _split_off(index: Index, chosen: BoolArray, validation: str | float, seed: int) -> BoolArray:
    rows = int(chosen.sum())
    count = auto_rows(rows) if validation == "auto" else round(float(validation) * rows)
    taken = np.zeros(len(index), bool)
    if validation != 0:
        if rows == len(index):
            return stratified(index.keys, index.kinds, max(count, 1), seed)
        at = np.flatnonzero(chosen)
        taken[at] = stratified(index.keys[at], index.kinds[at], max(count, 1), seed)
    return taken


def auto_rows(rows: int) -> int:
    return min(max(int(AUTO_SHARE * rows), AUTO_FEWEST), AUTO_MOST, rows // 5)


def _check_left(index: Index, train: Dataset, chosen: BoolArray) -> None:
    left = sum(count > 0 for count in index.counts_of(chosen).values())
    if not chosen.any() or (left < 2 and not train.multi_label):
        raise DataError(
            f"{train.address}: only {int(chosen.sum()):,} rows of {left} label(s) are left for training; "
            f"give more rows, a smaller data.validation, or files that do not overlap"
        )


def stratified(keys: LongArray, kinds: npt.NDArray[np.integer[Any]], count: int, seed: int) -> BoolArray:
    """About `count` of the rows, with the shares of the kinds kept; rows of equal key stay on one side.

    Every kind with two texts or more gets at least one row on each side, as far as `count` allows. The answer depends
    on the order of rows and on which keys are equal, not on the keys' values.
    """
    first = np.flatnonzero(first_of_each(keys))
    kind = kinds[first]
    quota = _quotas(np.bincount(kind), count * len(first) / max(len(keys), 1))
    shuffled = np.random.default_rng([seed, _SALT]).permutation(len(first))
    return is_among(keys, keys[first[_first_of_kinds(shuffled, kind, quota)]])


def _first_of_kinds(order: LongArray, kind: npt.NDArray[np.integer[Any]], quota: LongArray) -> LongArray:
    """So many of each kind as `quota` says, those that come first in `order`."""
    left, found = quota.copy(), [order[:0]]
    for start in range(0, len(order), _AT_ONCE):
        if not left.any():
            break
        some = order[start : start + _AT_ONCE]
        sizes = np.bincount(kind[some], minlength=len(quota))
        by_kind = some[np.argsort(kind[some], kind="stable")]
        rank = np.arange(len(some)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found.append(by_kind[rank < np.repeat(left, sizes)])
        left -= np.minimum(left, sizes)
    return np.concatenate(found)


def _quotas(sizes: LongArray, count: float) -> LongArray:
    """How many groups of each kind: proportional, by largest remainder, at least one and never all."""
    exact = sizes * min(count / max(int(sizes.sum()), 1), 1.0)
    quota = np.floor(exact).astype(np.int64)
    left = round(count) - int(quota.sum())
    if left > 0:
        quota[np.argsort(quota - exact, kind="stable")[:left]] += 1
    if np.count_nonzero(sizes) <= count:
        quota = np.maximum(quota, 1)
    most: LongArray = np.minimum(quota, np.maximum(sizes - 1, 0))
    return most
