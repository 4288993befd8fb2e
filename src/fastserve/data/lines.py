"""From pieces of bytes to whole lines with their true numbers, and never a huge line in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines end to end, each with its "\\n"; `first` is the number of the first, counted from 1."""

    first: int
    data: bytes
    count: int


@dataclass(frozen=True, slots=True)
class LongLine:
    """A line longer than is allowed, thrown away while it was read."""

    row: int
    size: int
    start: bytes


def read_lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[Lines | LongLine]:
    """Blocks of lines of about a chunk each, "\\r\\n" made "\\n", blank lines at the end of the last left out."""
    held: Lines | LongLine | None = None
    for block in _number(_cut(chunks, max_bytes), max_bytes):
        if held is not None:
            yield held
        held = block
    if isinstance(held, Lines):
        data = held.data.rstrip(b"\n")
        held = Lines(held.first, data + b"\n", data.count(b"\n") + 1) if data else None
    if held is not None:
        yield held


def _cut(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes | LongLine]:
    """Pieces that end with a line; a line over `max_bytes` that spans chunks is counted, not kept (its row still 0)."""
    pending, dropped, start = b"", 0, b""
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if dropped and not cut:
            dropped += len(chunk)
            continue
        if dropped:
            end = chunk.find(b"\n") + 1
            yield LongLine(0, dropped + end, start)
            chunk, cut, dropped = chunk[end:], cut - end, 0
        if cut:
            yield pending + chunk[:cut]
            pending = b""
        pending += chunk[cut:]
        if len(pending) > max_bytes:
            pending, dropped, start = b"", len(pending), pending[:200]
    if dropped:
        yield LongLine(0, dropped, start)
    elif pending:
        yield pending + b"\n"


def _number(pieces: Iterable[bytes | LongLine], max_bytes: int) -> Iterator[Lines | LongLine]:
    row = 1
    for piece in pieces:
        if isinstance(piece, LongLine):
            yield LongLine(row, piece.size, piece.start)
            row += 1
            continue
        for block in _without_long_lines(piece, row, max_bytes):
            yield block
            row += block.count if isinstance(block, Lines) else 1


def _without_long_lines(data: bytes, row: int, max_bytes: int) -> Iterator[Lines | LongLine]:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + 1
    sizes = np.diff(ends, prepend=0)
    done = 0  # lines already given out
    for long in [*np.flatnonzero(sizes > max_bytes).tolist(), len(ends)]:
        begin, end = (int(ends[done - 1]) if done else 0), (int(ends[long - 1]) if long else 0)
        if long > done:
            yield Lines(row + done, data[begin:end], long - done)
        if long < len(ends):
            yield LongLine(row + long, int(sizes[long]), data[end : end + 200])
        done = long + 1
