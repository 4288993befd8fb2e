"""A data set: files of labelled texts as blocks of usable rows, with every unusable row accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fastserve.config import DataConfig
from fastserve.data.blocks import BadRows, Block, RawBlock
from fastserve.data.cells import check_rows
from fastserve.data.columns import Mapped, map_columns
from fastserve.data.formats import Reader, open_reader
from fastserve.data.sources import find_sources
from fastserve.errors import DataError, choices
from fastserve.types import Example


@dataclass
class Dataset:
    """One or more files read as one. Iterating again reads again, and counts bad rows anew.

    available: every column name; keep: those that go into Example.columns; known_labels: labels that may occur
    (None: any), a row with another is a bad row. remember: texts of up to so many characters in all are kept in memory
    by the first pass and not read again.
    """

    address: str
    readers: list[Reader]
    mapped: Mapped
    limit: int | float
    available: list[str]
    keep: tuple[str, ...] = ()
    known_labels: frozenset[str] | None = None
    remember: int = 0
    bad_rows: BadRows = field(default_factory=BadRows)
    rows: int = 0
    _kept: list[Block] | None = field(default=None, init=False, repr=False)

    @property
    def multi_label(self) -> bool:
        return self.mapped.multi_label

    @property
    def files(self) -> list[str]:
        return [reader.source.address for reader in self.readers]

    def __iter__(self) -> Iterator[Example]:
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[Block]:
        """Usable rows in the order of the files. DataError when there are too many bad ones, or no row at all."""
        if self._kept is not None:
            yield from self._kept
            return
        left, kept = self.remember, list[Block]()
        for block in self._read():
            left -= sum(map(len, block.texts)) + 1
            kept = [*kept, block] if left >= 0 else []
            yield block
        self._kept = kept if left >= 0 else None

    def _read(self) -> Iterator[Block]:
        self.bad_rows, self.rows = BadRows(), 0
        wanted = list(dict.fromkeys([self.mapped.text, *self.mapped.label_columns, *self.keep]))
        for reader in self.readers:
            for raw in reader.blocks(wanted):
                block, bad = check_rows(raw, self.mapped, self.keep, self.known_labels, reader.source.address)
                self.bad_rows.add(bad)
                self.rows += len(block)
                self.bad_rows.judge_early(self.rows, self.limit, self.address)
                if len(block):
                    yield block
        self.bad_rows.judge(self.rows, self.limit, self.address)


def open_dataset(
    address: str,
    config: DataConfig | None = None,
    *,
    labelled: bool | None = True,
    keep: Sequence[str] | None = (),
    known_labels: Sequence[str] | None = None,
    mapped: Mapped | None = None,
) -> Dataset:
    """Look at the files behind `address` and settle their columns; nothing but their beginnings is read.

    labelled: True, there must be labels; None, they are used where there are; False, they are passed over.
    keep: extra columns for Example.columns, None for all that every file has.
    mapped: columns settled already (those of the training file); used where this file has them.
    """
    config = config or DataConfig()
    expected = _expected_names(config, mapped)
    readers = [open_reader(source, config.max_row_bytes, expected) for source in find_sources(address)]
    first = readers[0]
    if mapped is None or not {mapped.text, *mapped.label_columns} <= set(first.names):
        mapped = _look(first, config, labelled)
    if not labelled and not set(mapped.label_columns) <= set(first.names):
        mapped = Mapped(mapped.text, None, None, False)
    used = (mapped.text, *mapped.label_columns)
    others = [name for name in first.names if name not in used and all(name in reader.names for reader in readers)]
    for name in keep or ():
        if name not in first.names:
            raise DataError(f"{address} has no column '{name}': {choices(name, first.names)}")
    _check_same_columns(readers, [mapped.text, *mapped.label_columns, *(keep or ())])
    known = None if known_labels is None else frozenset(known_labels)
    kept = tuple(others if keep is None else keep)
    return Dataset(address, readers, mapped, config.bad_rows, list(first.names), kept, known)


def _expected_names(config: DataConfig, mapped: Mapped | None) -> list[str]:
    if mapped is not None:
        return [mapped.text, *mapped.label_columns]
    label = config.columns.label
    names = [config.columns.text, *(label if isinstance(label, list) else [label])]
    return [name for name in names if name]


def _look(reader: Reader, config: DataConfig, labelled: bool | None) -> Mapped:
    sample = next((raw for raw in islice(reader.blocks(reader.names), 100) if len(raw)), None)
    columns = {name: cells[:2000] for name, cells in sample.columns.items()} if isinstance(sample, RawBlock) else {}
    if not columns and not reader.names:
        raise DataError(f"{reader.source.address} has no row")
    return map_columns(reader.names, columns, config, reader.source.address, labelled=labelled)


def _check_same_columns(readers: Sequence[Reader], needed: Sequence[str]) -> None:
    for reader in readers[1:]:
        for name in needed:
            if name not in reader.names:
                raise DataError(
                    f"{reader.source.address} has no column '{name}', which {readers[0].source.address} has: "
                    f"{choices(name, reader.names)}"
                )
