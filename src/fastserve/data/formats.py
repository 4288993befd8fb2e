"""One reader a format: the names of its columns, and blocks of raw rows with true row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastserve import log
from fastserve.data import delimited, jsonrows
from fastserve.data.blocks import RawBlock
from fastserve.data.encodings import utf8_chunks
from fastserve.data.headers import column_names, is_header
from fastserve.data.lines import Lines, LongLine, read_lines
from fastserve.data.sources import Source, read_chunks
from fastserve.errors import DataError

FASTTEXT = "__label__"
_LOOK_ROWS = 200


class Reader(Protocol):
    """A file that can be read again and again. `has_header`: whether the names stand in the file."""

    @property
    def source(self) -> Source: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def has_header(self) -> bool: ...

    def blocks(self, wanted: Sequence[str]) -> Iterator[RawBlock]:
        """The rows in order; at least the columns `wanted` (a format may give more)."""
        ...


def open_reader(source: Source, max_row_bytes: int, expected: Sequence[str] = ()) -> Reader:
    """Look at the beginning of a file and choose its reader. `expected`: column names that the user wrote."""
    if source.format in ("csv", "tsv"):
        return _open_delimited(source, max_row_bytes, expected)
    if source.format in ("jsonl", "json"):
        return _open_json(source, max_row_bytes)
    if source.format == "txt":
        return _open_text(source, max_row_bytes)
    from fastserve.data import tables

    return tables.open_parquet(source) if source.format == "parquet" else tables.open_hub(source)


def _lines(source: Source, max_row_bytes: int) -> Iterator[Lines | LongLine]:
    return read_lines(utf8_chunks(read_chunks(source), source.address), max_row_bytes)


def _first_lines(source: Source, max_row_bytes: int) -> Lines:
    for block in _lines(source, max_row_bytes):
        if isinstance(block, Lines):
            return block
    raise DataError(f"{source.address} has no line of at most {max_row_bytes:,} bytes (data.max_row_bytes)")


@dataclass(frozen=True)
class DelimitedReader:
    """csv and tsv."""

    source: Source
    names: list[str]
    has_header: bool
    max_row_bytes: int
    dialect: delimited.Dialect
    header_lines: int = 0

    def blocks(self, wanted: Sequence[str]) -> Iterator[RawBlock]:
        lines = _without_header(_lines(self.source, self.max_row_bytes), self.header_lines)
        return delimited.read_records(lines, self.dialect, self.names, self.max_row_bytes)


def _without_header(blocks: Iterator[Lines | LongLine], count: int) -> Iterator[Lines | LongLine]:
    for block in blocks:
        if count and isinstance(block, Lines):
            parts = block.data.split(b"\n", count)
            block, count = Lines(block.first + count, parts[-1], block.count - count), 0
            if not block.count:
                continue
        yield block


def _open_delimited(source: Source, max_row_bytes: int, expected: Sequence[str]) -> DelimitedReader:
    start = _first_lines(source, max_row_bytes)
    if start.first != 1:
        raise DataError(f"{source.address}: its first line is over {max_row_bytes:,} bytes (data.max_row_bytes)")
    separator = "\t" if source.format == "tsv" else _csv_separator(start.data, source)
    dialect = delimited.Dialect(separator, spans_lines=source.format == "csv")
    rows, taken = delimited.read_first(start, dialect, _LOOK_ROWS, max_row_bytes)
    if not rows:
        raise DataError(f"{source.address}: its first line cannot be read as the names of columns; mend its quotes")
    header = is_header(rows[0], rows[1:], expected)
    names = column_names(rows[0] if header else [""] * len(rows[0]))
    if not header:
        log.say(f"{source.address} has no header; its columns are called {', '.join(names)}")
    return DelimitedReader(source, names, header, max_row_bytes, dialect, taken if header else 0)


def _csv_separator(start: bytes, source: Source) -> str:
    """A comma; but Excel in many countries writes semicolons, and some people tabs, under the name of csv."""
    first = start.partition(b"\n")[0]
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if b"," not in first and mark.encode() in first:
            log.say(f"{source.address} is parted by {name} rather than commas; it is read as such")
            return mark
    return ","


@dataclass(frozen=True)
class JsonLinesReader:
    """One JSON object a line."""

    source: Source
    names: list[str]
    max_row_bytes: int
    has_header: bool = True

    def blocks(self, wanted: Sequence[str]) -> Iterator[RawBlock]:
        return jsonrows.read_objects(_lines(self.source, self.max_row_bytes), wanted)


@dataclass(frozen=True)
class JsonArrayReader:
    """One array of objects; a row is numbered by the line on which its object begins."""

    source: Source
    names: list[str]
    max_row_bytes: int
    has_header: bool = True

    def blocks(self, wanted: Sequence[str]) -> Iterator[RawBlock]:
        chunks = utf8_chunks(read_chunks(self.source), self.source.address)
        return jsonrows.read_array(chunks, self.source.address, wanted, self.max_row_bytes)


def _open_json(source: Source, max_row_bytes: int) -> JsonLinesReader | JsonArrayReader:
    kind: type[JsonLinesReader] | type[JsonArrayReader] = JsonLinesReader
    if source.format == "json":
        start = next(utf8_chunks(read_chunks(source), source.address))
        if jsonrows.is_lines(start):
            log.say(f"{source.address} holds one JSON object a line; it is read as jsonl")
        else:
            kind = JsonArrayReader
    first = next((block for block in kind(source, [], max_row_bytes).blocks([jsonrows.ALL]) if len(block)), None)
    if first is None:
        raise DataError(f"{source.address} has no row that is a JSON object; expected for instance {jsonrows.EXAMPLE}")
    names = list(dict.fromkeys(name for record in first.columns[jsonrows.ALL] for name in record))
    return kind(source, names, max_row_bytes)


@dataclass(frozen=True)
class TextReader:
    """One text a line; with fastText labels `__label__x __label__y text`."""

    source: Source
    names: list[str]
    max_row_bytes: int
    has_header: bool = True

    def blocks(self, wanted: Sequence[str]) -> Iterator[RawBlock]:
        for block in _lines(self.source, self.max_row_bytes):
            if isinstance(block, LongLine):
                found = [delimited.long_line(block)]
                yield RawBlock(np.zeros(0, np.int64), {name: [] for name in self.names}, found)
            else:
                yield self._block(block)

    def _block(self, block: Lines) -> RawBlock:
        rows, lines, bad = delimited.decode_lines(block)
        columns: dict[str, list[Any]] = {"text": lines}
        if "label" in self.names:
            parted = [split_fasttext(line) for line in lines]
            columns = {"text": [text for text, _ in parted], "label": [labels for _, labels in parted]}
        return RawBlock(np.array(rows, np.int64), columns, bad)


def split_fasttext(line: str) -> tuple[str, str | list[str] | None]:
    """`__label__x text` to text and x; several labels come as a list, none as None."""
    labels = []
    while line.startswith(FASTTEXT):
        label, _, line = line.partition(" ")
        labels.append(label.removeprefix(FASTTEXT))
        line = line.lstrip()
    return line, (labels if len(labels) > 1 else labels[0] if labels else None)


def _open_text(source: Source, max_row_bytes: int) -> TextReader:
    start = _first_lines(source, max_row_bytes)
    labelled = start.data.lstrip().startswith(FASTTEXT.encode())
    return TextReader(source, ["text", "label"] if labelled else ["text"], max_row_bytes)
