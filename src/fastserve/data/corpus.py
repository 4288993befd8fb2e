"""The data of a language model: files as blocks of documents, with every unusable row accounted for."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.config import DataConfig
from fastserve.data.blocks import BadRows
from fastserve.data.conversations import Form, recognize
from fastserve.data.encodings import utf8_chunks
from fastserve.data.formats import Reader, open_reader
from fastserve.data.sources import Source, find_sources, read_chunks
from fastserve.errors import DataError
from fastserve.types import Document, LongArray, PlainText

PIECE = 1 << 15
"""Characters of a long text that are read, and later split and shuffled, as one."""
_LOOKED_AT = 2000


@dataclass(frozen=True, slots=True)
class DocumentBlock:
    """documents, and rows: int64 (N,), lines in `file` on which they begin, counted from 1."""

    documents: list[Document]
    rows: LongArray
    file: str

    def __len__(self) -> int:
        return len(self.documents)

    def take(self, index: npt.NDArray[np.integer[Any]]) -> DocumentBlock:
        """The documents at the given positions, in that order."""
        return DocumentBlock([self.documents[i] for i in index.tolist()], self.rows[index], self.file)


@dataclass
class Corpus:
    """Files read as one. Iterating again reads again, and counts bad rows anew.

    form: what the rows of the files are; None where each file is one text. limit: `data.bad_rows`.
    """

    address: str
    sources: list[Source]
    readers: list[Reader]
    form: Form | None
    limit: int | float
    bad_rows: BadRows = field(default_factory=BadRows)
    rows: int = 0

    @property
    def description(self) -> str:
        """What was recognized, for a line."""
        return self.form.description if self.form else "one text a file"

    def blocks(self) -> Iterator[DocumentBlock]:
        """Documents in the order of the files. DataError when there are too many bad rows, or no row at all."""
        self.bad_rows, self.rows = BadRows(), 0
        for block in self._of_files() if self.form is None else self._of_rows(self.form):
            self.rows += len(block)
            self.bad_rows.judge_early(self.rows, self.limit, self.address)
            if len(block):
                yield block
        self.bad_rows.judge(self.rows, self.limit, self.address)

    def _of_rows(self, form: Form) -> Iterator[DocumentBlock]:
        for reader in self.readers:
            for raw in reader.blocks(form.columns):
                documents, rows, bad = form.parse(raw, reader.source.address)
                self.bad_rows.add(bad)
                yield DocumentBlock(documents, rows, reader.source.address)

    def _of_files(self) -> Iterator[DocumentBlock]:
        for source in self.sources:
            line = 1
            for piece in _pieces(source):
                yield DocumentBlock([piece], np.array([line]), source.address)
                line += piece.text.count("\n")


def _pieces(source: Source) -> Iterator[PlainText]:
    """The text of a file in pieces that end with a line where they can."""
    waiting, begins = "", True
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in utf8_chunks(read_chunks(source), source.address):
        waiting += decoder.decode(chunk)
        while len(waiting) > 2 * PIECE:
            end = waiting.rfind("\n", 0, PIECE) + 1 or PIECE
            yield PlainText(waiting[:end], begins, ends=False)
            waiting, begins = waiting[end:], False
    if waiting.strip():
        yield PlainText(waiting, begins)


def open_corpus(address: str, config: DataConfig) -> Corpus:
    """Look at the files behind `address` and recognize their form; nothing but their beginnings is read."""
    sources = find_sources(address)
    by_file = config.documents == "file" or (config.documents == "auto" and all(s.format == "txt" for s in sources))
    if by_file:
        odd = next((source for source in sources if source.format != "txt"), None)
        if odd is not None:
            raise DataError(f"data.documents is 'file', but {odd.address} holds rows; only txt files are one text")
        return Corpus(address, sources, [], None, config.bad_rows)
    readers = [open_reader(source, config.max_row_bytes, _named(config)) for source in sources]
    form = _recognized(readers[0], config)
    for reader in readers[1:]:
        missing = [name for name in form.columns if name not in reader.names]
        if missing:
            raise DataError(
                f"{reader.source.address} has no column '{missing[0]}', which {readers[0].source.address} has"
            )
    return Corpus(address, sources, readers, form, config.bad_rows)


def _named(config: DataConfig) -> Sequence[str]:
    columns = config.columns
    names = (columns.text, columns.prompt, columns.completion, columns.messages, columns.chosen, columns.rejected)
    return [name for name in names if name]


def _recognized(reader: Reader, config: DataConfig) -> Form:
    return recognize(reader.names, first_cells(reader), config.columns, reader.source.address)


def first_cells(reader: Reader) -> dict[str, Sequence[Any]]:
    """Some cells of each column, by its name. DataError where there is no row."""
    sample = next((raw for raw in islice(reader.blocks(reader.names), 100) if len(raw)), None)
    if sample is None:
        raise DataError(f"{reader.source.address} has no row")
    return {name: column[:_LOOKED_AT] for name, column in sample.columns.items()}
