"""Blocks of well-formed csv with quotes, cut into columns by array operations.

Whatever is not plainly well-formed is left to the row-by-row reader of `delimited`, which must give the same cells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastserve.data.lines import Lines
from fastserve.types import LongArray

_QUOTE, _END, _NEW_MARK = ord('"'), ord("\n"), 0
_MOST_LINES = 3
"""Line breaks in a row; one with more is looked at closely."""

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


def split_quoted_block(block: Lines, separator: str, width: int) -> tuple[LongArray, list[list[str]]] | None:
    """Row numbers int64 (N,) and `width` columns; None where the block is not plainly well-formed."""
    buffer = np.frombuffer(block.data, np.uint8)
    quotes = buffer == _QUOTE
    inside = np.logical_xor.accumulate(quotes)  # from an opening quote up to its closing one
    breaks = buffer == _END
    marks = (breaks | (buffer == ord(separator))) & ~inside
    if inside[-1] or b"\0" in block.data or not _quotes_are_in_place(quotes, inside, marks):
        return None
    at = np.flatnonzero(marks)
    if len(at) % width:
        return None
    ends = breaks[at].reshape(-1, width)  # (rows, width): whether a cell ends its row
    if ends[:, :-1].any() or not ends[:, -1].all():
        return None
    rows = _row_numbers(at[width - 1 :: width], np.flatnonzero(breaks), block.first)
    if rows is None:
        return None
    cells = _cells(buffer, at)
    if cells is None or (width == 1 and "" in cells):
        return None
    return rows, [[_unquote(c) if c[:1] == '"' else c for c in cells[column::width]] for column in range(width)]


def _quotes_are_in_place(quotes: Bools, inside: Bools, marks: Bools) -> bool:
    """An opening quote stands behind a mark or a closing quote (a doubled one), a closing one before either."""
    before = np.concatenate([[True], marks[:-1] | (quotes[:-1] & ~inside[:-1])])
    after = np.concatenate([marks[1:] | quotes[1:], [True]])
    opening, closing = quotes & inside, quotes & ~inside
    return bool(before[opening].all() and after[closing].all())


def _row_numbers(ends: LongArray, breaks: LongArray, first: int) -> LongArray | None:
    """The line on which each row begins, given where rows and lines end."""
    lines = np.searchsorted(breaks, ends) + 1  # lines up to the end of each row
    if np.diff(lines, prepend=0).max() > _MOST_LINES:
        return None
    return np.concatenate([[0], lines[:-1]]).astype(np.int64) + first


def _cells(buffer: Bytes, at: LongArray) -> list[str] | None:
    marked = buffer.copy()
    marked[at] = _NEW_MARK
    try:
        return marked.tobytes().decode("utf-8").split("\0")[:-1]
    except UnicodeDecodeError:
        return None


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"')
