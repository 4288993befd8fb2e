"""csv and tsv: lines to columns, with quotes understood and never trusted.

csv: RFC 4180. A cell may be quoted; a quote inside is doubled; a quoted cell may hold separators and line breaks.
tsv: one row a line, always. A cell is quoted only if it both begins and ends with a quote and every quote inside is
doubled; any other quote is literal text. A line with too many tabs is read once more as if it were csv.

A quote that opens and does not close properly spoils its own line only: reading goes on at the next one. It counts as
not closed when the record would be over MAX_LINES lines or the byte limit, has another number of cells than the header,
has text behind the closing quote, or would swallow lines that are whole rows by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastserve.data.blocks import BadRow, RawBlock, excerpt
from fastserve.data.lines import Lines, LongLine
from fastserve.data.quoted import split_quoted_block
from fastserve.types import LongArray

MAX_LINES = 1000
NOT_UTF8 = "not valid UTF-8"
TOO_LONG = "line too long"
FIELDS = "wrong number of fields"
QUOTE = "quote not closed"
EMPTY = "empty line"


class OpenQuote(Exception):
    """The line ends inside a quoted cell."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """separator: one character. spans_lines: whether a quoted cell may hold line breaks (csv)."""

    separator: str
    spans_lines: bool
    _cell: re.Pattern[str] = field(init=False)
    _quoted: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        mark = re.escape(self.separator)
        cell = rf'(?:"([^"]*(?:""[^"]*)*+)"|((?!")[^{mark}]*+))(?:{mark}|(\Z))'
        object.__setattr__(self, "_cell", re.compile(cell))
        object.__setattr__(self, "_quoted", re.compile(r'"[^"]*(?:""[^"]*)*+"'))

    def split(self, line: str, width: int) -> list[str] | None:
        """The cells of one record; None if there are not `width` of them (0: any). OpenQuote: it goes on."""
        if '"' not in line:
            return self._checked(line.split(self.separator), width)
        if not self.spans_lines:
            literal = [self.unquote(cell) for cell in line.split(self.separator)]
            if len(literal) == width or not width:
                return literal
        cells = self.split_quoted(line)
        if cells is None:  # a quote inside a quoted cell is not doubled: the text is taken as it stands
            cells = line.split(self.separator)
        return self._checked(cells, width)

    def _checked(self, cells: list[str], width: int) -> list[str] | None:
        return cells if len(cells) == width or not width else None

    def split_quoted(self, line: str) -> list[str] | None:
        """The cells by the letter of RFC 4180; None where a quote stands where it may not."""
        cells, position = [], 0
        while True:
            match = self._cell.match(line, position)
            if match is None:
                if self.spans_lines and self._never_closes(line, position):
                    raise OpenQuote
                return None
            quoted, plain, end = match.groups()
            cells.append(plain if quoted is None else quoted.replace('""', '"'))
            if end is not None:
                return cells
            position = match.end()

    def _never_closes(self, line: str, position: int) -> bool:
        return line.startswith('"', position) and self._quoted.match(line, position) is None

    def unquote(self, cell: str) -> str:
        if cell[:1] == '"' and self._quoted.fullmatch(cell):
            return cell[1:-1].replace('""', '"')
        return cell


@dataclass(slots=True)
class _Rows:
    """Rows gathered one by one where the fast way does not apply."""

    width: int
    rows: list[int] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def columns(self) -> list[list[str]]:
        return [list(column) for column in zip(*self.cells, strict=True)] or [[] for _ in range(self.width)]


def read_records(
    blocks: Iterable[Lines | LongLine], dialect: Dialect, names: Sequence[str], max_bytes: int
) -> Iterator[RawBlock]:
    """Blocks of lines as columns under `names`; every row has len(names) cells, or is bad."""
    width = len(names)
    kept: Lines | None = None  # the end of a block, inside a quoted cell
    for block in blocks:
        if isinstance(block, LongLine):
            if kept is not None:
                yield _raw(names, *_slow(kept, dialect, width, max_bytes, last=True)[:1])
                kept = None
            yield RawBlock(np.zeros(0, np.int64), {name: [] for name in names}, [long_line(block)])
            continue
        if kept is not None:
            block, kept = Lines(kept.first, kept.data + block.data, kept.count + block.count), None
        fast = _fast(block, dialect, width)
        if fast is not None:
            yield RawBlock(fast[0], dict(zip(names, fast[1], strict=True)))
        else:
            found, kept = _slow(block, dialect, width, max_bytes, last=False)
            yield _raw(names, found)
    if kept is not None:
        yield _raw(names, *_slow(kept, dialect, width, max_bytes, last=True)[:1])


def read_first(block: Lines, dialect: Dialect, most: int, max_bytes: int) -> tuple[list[list[str]], int]:
    """The first records of a file, of any width, to look at; and how many lines the very first takes."""
    lines = block.data.split(b"\n", most)[:-1]
    try:
        text = lines[0].decode("utf-8")
        first, taken = dialect.split(text, 0), 1
    except OpenQuote:
        first, taken = _gather(lines, 0, dialect, 0, max_bytes)
    except UnicodeDecodeError:
        first, taken = None, 1
    if first is None:
        return [], 1
    rest = Lines(block.first + taken, b"\n".join([*lines[taken:], b""]), len(lines) - taken)
    found, _ = _slow(rest, dialect, len(first), max_bytes, last=False)
    return [first, *found.cells], taken


def _raw(names: Sequence[str], found: _Rows) -> RawBlock:
    columns = dict(zip(names, found.columns(), strict=True))
    return RawBlock(np.array(found.rows, np.int64), columns, found.bad)


def decode_lines(block: Lines) -> tuple[list[int], list[str], list[BadRow]]:
    """Row numbers and texts of the lines that are UTF-8, and the others as bad rows."""
    try:
        lines = block.data.decode("utf-8").split("\n")[:-1]
        return list(range(block.first, block.first + block.count)), lines, []
    except UnicodeDecodeError:
        pass
    rows, texts, bad = [], [], []
    for row, line in enumerate(block.data.split(b"\n")[:-1], start=block.first):
        try:
            texts.append(line.decode("utf-8"))
            rows.append(row)
        except UnicodeDecodeError as error:
            bad.append(_not_utf8(row, line, error))
    return rows, texts, bad


def _not_utf8(row: int, line: bytes, error: UnicodeDecodeError) -> BadRow:
    return BadRow(row, NOT_UTF8, f"byte {error.start + 1} of {excerpt(line)}")


def long_line(line: LongLine) -> BadRow:
    return BadRow(line.row, TOO_LONG, f"{line.size:,} bytes, beginning {excerpt(line.start)}")


def _fast(block: Lines, dialect: Dialect, width: int) -> tuple[LongArray, list[list[str]]] | None:
    """Row numbers and columns of a block in which every row has `width` cells, by array operations; else None."""
    if dialect.spans_lines and b'"' in block.data:
        return split_quoted_block(block, dialect.separator, width)
    buffer = np.frombuffer(block.data, np.uint8)
    separator = ord(dialect.separator)
    marks = buffer[(buffer == separator) | (buffer == 10)]
    if len(marks) != block.count * width:
        return None
    table = marks.reshape(-1, width)
    if not ((table[:, :-1] == separator).all() and (table[:, -1] == 10).all()):
        return None
    try:
        cells = block.data.decode("utf-8").replace("\n", dialect.separator).split(dialect.separator)
    except UnicodeDecodeError:
        return None
    if width == 1 and "" in cells[:-1]:
        return None  # an empty line, to be told from an empty cell
    columns = [cells[index : block.count * width : width] for index in range(width)]
    if b'"' in block.data:
        columns = [[dialect.unquote(c) if c[:1] == '"' else c for c in column] for column in columns]
    return np.arange(block.first, block.first + block.count, dtype=np.int64), columns


def _slow(block: Lines, dialect: Dialect, width: int, max_bytes: int, *, last: bool) -> tuple[_Rows, Lines | None]:
    """Row by row. The second value is the unfinished record at the end of the block, if there may be more of it."""
    lines = block.data.split(b"\n")[:-1]
    found = _Rows(width)
    at = 0
    while at < len(lines):
        taken = 1
        try:
            cells = dialect.split(lines[at].decode("utf-8"), width)
        except UnicodeDecodeError as error:
            found.bad.append(_not_utf8(block.first + at, lines[at], error))
            at += 1
            continue
        except OpenQuote:
            cells, taken = _gather(lines, at, dialect, width, max_bytes)
            if cells is None and taken == 0 and not last:
                rest = lines[at:]
                return found, Lines(block.first + at, b"\n".join(rest) + b"\n", len(rest))
            if cells is None:
                found.bad.append(BadRow(block.first + at, QUOTE, excerpt(lines[at])))
                at += 1
                continue
        if cells is None:
            found.bad.append(_faulty(lines[at], block.first + at, dialect, width))
        elif len(cells) == 1 and not lines[at].strip():
            found.bad.append(BadRow(block.first + at, EMPTY))
        else:
            found.rows.append(block.first + at)
            found.cells.append(cells)
        at += taken
    return found, None


def _faulty(line: bytes, row: int, dialect: Dialect, width: int) -> BadRow:
    if not line.strip():
        return BadRow(row, EMPTY)
    count = len(dialect.split(line.decode("utf-8"), 0) or ())
    return BadRow(row, FIELDS, f"{count} where the header has {width}: {excerpt(line)}")


def _gather(lines: list[bytes], at: int, dialect: Dialect, width: int, max_bytes: int) -> tuple[list[str] | None, int]:
    """The record that begins on line `at` with an open quote, and how many lines it takes.

    (None, 0): the block ends before the quote closes. (None, 1): it never closes properly.
    """
    size = 0
    for end in range(at, min(at + MAX_LINES, len(lines))):
        size += len(lines[end]) + 1
        if size > max_bytes:
            return None, 1
        if end == at or lines[end].count(b'"') % 2 == 0:
            continue
        try:
            cells = dialect.split_quoted(b"\n".join(lines[at : end + 1]).decode("utf-8"))
        except OpenQuote:
            continue
        except UnicodeDecodeError:
            return None, 1
        if cells is None or (width and len(cells) != width) or _swallows(lines[at + 1 : end], dialect, width):
            return None, 1
        return cells, end + 1 - at
    return None, 0 if at + MAX_LINES > len(lines) else 1


def _swallows(inner: list[bytes], dialect: Dialect, width: int) -> bool:
    """Whether the lines inside a record are all whole rows by themselves: then its quotes belong to two rows."""
    return width > 1 and len(inner) >= 3 and all(_is_row(line.decode("utf-8"), dialect, width) for line in inner)


def _is_row(line: str, dialect: Dialect, width: int) -> bool:
    """Whether a line alone has `width` cells and something in them."""
    try:
        cells = dialect.split(line, width)
    except OpenQuote:
        return False
    return cells is not None and any(cells)
