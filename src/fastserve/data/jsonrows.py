"""JSON to columns: one object a line, or one array of objects read piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fastserve.data.blocks import BadRow, RawBlock, excerpt
from fastserve.data.delimited import decode_lines, long_line
from fastserve.data.lines import Lines, LongLine
from fastserve.errors import DataError

ALL = "*"
"""As the one wanted column: the whole object of each row."""
EXAMPLE = '{"text": "a good book", "label": "positive"}'
NOT_JSON = "not a JSON object"
_ROWS = 8192


def read_objects(blocks: Iterable[Lines | LongLine], wanted: Sequence[str]) -> Iterator[RawBlock]:
    """Lines that each hold an object."""
    for block in blocks:
        if isinstance(block, LongLine):
            yield _block([], [], wanted, [long_line(block)])
            continue
        rows, lines, bad = decode_lines(block)
        good, objects = [], []
        for row, line in zip(rows, lines, strict=True):
            value, fault = _parse(line)
            if fault is None:
                good.append(row)
                objects.append(value)
            else:
                bad.append(BadRow(row, NOT_JSON if line.strip() else "empty line", fault))
        yield _block(good, objects, wanted, bad)


def _parse(line: str) -> tuple[Any, str | None]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, f"{excerpt(line)} ({error})" if line.strip() else ""
    return value, (None if isinstance(value, dict) else excerpt(line))


def _block(rows: list[int], objects: list[dict[str, Any]], wanted: Sequence[str], bad: list[BadRow]) -> RawBlock:
    columns: dict[str, list[Any]] = {name: [value.get(name) for value in objects] for name in wanted if name != ALL}
    if ALL in wanted:
        columns[ALL] = objects
    return RawBlock(np.array(rows, np.int64), columns, bad)


def is_lines(start: bytes) -> bool:
    """Whether a .json file is really one object a line: its first line is a whole object."""
    first = start.lstrip().partition(b"\n")[0]
    try:
        return isinstance(json.loads(first), dict) and b"\n" in start.strip()
    except (ValueError, RecursionError):
        return False


def read_array(chunks: Iterable[bytes], name: str, wanted: Sequence[str], max_bytes: int) -> Iterator[RawBlock]:
    """The objects of one array in blocks. DataError where the JSON breaks: what follows cannot be trusted."""
    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for row, value in _elements(chunks, name, max_bytes):
        if isinstance(value, dict):
            rows.append(row)
            objects.append(value)
        else:
            bad.append(BadRow(row, NOT_JSON, excerpt(json.dumps(value, ensure_ascii=False))))
        if len(rows) + len(bad) >= _ROWS:
            yield _block(rows, objects, wanted, bad)
            rows, objects, bad = [], [], []
    yield _block(rows, objects, wanted, bad)


def _elements(chunks: Iterable[bytes], name: str, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """(line of its beginning, value) of each element."""
    text = _Text(iter(chunks), name)
    if text.skip() != "[":
        raise DataError(f"{name} is JSON but not an array of objects: expected [{EXAMPLE}, ...]. {_found(text)}")
    text.position += 1
    if text.skip() == "]":
        return
    while True:
        text.skip()
        row = text.line
        yield row, text.value(max_bytes)
        mark = text.skip()
        text.position += 1
        if mark == "]":
            return
        if mark != ",":
            found = mark or "the end of the file"
            raise DataError(f"{name} line {text.line}: expected ',' or ']' after an object, found {found!r}")


def _found(text: _Text) -> str:
    try:
        value = json.loads(text.buffer)
    except (ValueError, RecursionError):
        return f"Found {excerpt(text.buffer)}"
    keys = list(value)[:10] if isinstance(value, dict) else []
    return f"Found an object with the keys {', '.join(keys)}" if keys else f"Found {excerpt(text.buffer)}"


class _Text:
    """A window over the text that grows at its end and forgets its beginning."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self.chunks, self.name = chunks, name
        self.buffer, self.position, self.rest = "", 0, b""
        self._line, self._counted = 1, 0

    @property
    def line(self) -> int:
        self._line += self.buffer.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def grow(self) -> bool:
        chunk = next(self.chunks, None)
        if chunk is None:
            return False
        _ = self.line  # counts what is about to be forgotten
        data = self.rest + chunk
        try:
            text, self.rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            if error.end < len(data) - 3:
                raise DataError(f"{self.name} near line {self.line}: {error.reason}; the file must be UTF-8") from None
            text, self.rest = data[: error.start].decode("utf-8"), data[error.start :]
        self.buffer, self.position, self._counted = self.buffer[self.position :] + text, 0, 0
        return True

    def skip(self) -> str:
        """Pass white space; the character there, '' at the end of the file."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in " \t\r\n":
                self.position += 1
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.grow():
                return ""

    def value(self, max_bytes: int) -> Any:
        """The JSON value at the position, which moves behind it."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.buffer, self.position)
                if end < len(self.buffer) or not self.grow():
                    self.position = end if end <= len(self.buffer) else len(self.buffer)
                    return value
                continue  # a number may go on in the next piece
            except RecursionError:
                raise DataError(f"{self.name} line {self.line}: nested too deep") from None
            except ValueError as error:
                if len(self.buffer) - self.position > max_bytes:
                    raise DataError(
                        f"{self.name} line {self.line}: no whole object in {max_bytes:,} bytes (data.max_row_bytes)"
                    ) from None
                if not self.grow():
                    raise DataError(f"{self.name} line {self.line} is not valid JSON: {error}") from None
