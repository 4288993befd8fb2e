"""Whatever a text file is encoded in: told from its beginning, made UTF-8 where that is sure, else refused."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

from fastserve import log
from fastserve.errors import DataError

_MAGIC = {
    b"PAR1": "a parquet file; name it .parquet",
    b"PK\x03\x04": "a zip archive or an Excel file; save it as csv",
    b"\xd0\xcf\x11\xe0": "an old Excel file; save it as csv",
    b"\x1f\x8b": "a gzip file; name it .gz",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; name it .zst",
    b"%PDF": "a PDF; extract its text",
}
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_LOOK = 1 << 16
_CONTROL = bytes(code for code in range(32) if code not in b"\t\n\r\f\x1b")


def utf8_chunks(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The content without its byte order mark, UTF-16 turned into UTF-8; DataError where it is no text at all.

    Single lines that are not UTF-8 pass: they become bad rows with their numbers.
    """
    chunks = iter(chunks)
    first = next(chunks, b"")
    if not first.strip():
        rest = next(chunks, b"")
        if not rest:
            raise DataError(f"{name} is empty: it has no row")
        first += rest
    encoding = _UTF16.get(first[:2]) or _utf16_without_mark(first[:_LOOK])
    if encoding:
        log.say(f"{name} is {encoding.upper()}; it is read as such")
        yield from _transcode(first, chunks, encoding)
        return
    first = first.removeprefix(codecs.BOM_UTF8)
    _refuse_rubbish(first[:_LOOK], name)
    yield first
    yield from chunks


def _transcode(first: bytes, chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """A unit that is not valid becomes U+FFFD, which the quality report counts."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(first).removeprefix("\ufeff").encode("utf-8")
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8")
    yield decoder.decode(b"", True).encode("utf-8")


def _utf16_without_mark(start: bytes) -> str | None:
    """In UTF-16, every other byte of a Latin text is zero; in Chinese text at least those of line ends and tabs."""
    high, low = start[1::2].count(0), start[::2].count(0)
    if max(high, low) * 50 < len(start) or min(high, low) * 10 > max(high, low):
        return None
    encoding = "utf-16-le" if high > low else "utf-16-be"
    try:
        text = start[: len(start) // 2 * 2].decode(encoding)
    except UnicodeDecodeError:
        return None
    return encoding if sum(c.isprintable() or c in "\t\r\n" for c in text) > 0.95 * len(text) else None


def _refuse_rubbish(start: bytes, name: str) -> None:
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{name} is not text: it looks like {what}")
    control = len(start) - len(start.translate(None, _CONTROL))
    if control * 200 > len(start):
        raise DataError(f"{name} is not text: {control:,} of its first {len(start):,} bytes are binary. {_TEXT}")
    lines = start.split(b"\n")[:-1] or [start]
    faulty = [line for line in lines if not _is_utf8(line)]
    if len(faulty) * 2 > len(lines):
        raise DataError(
            f"{name} is not UTF-8: {len(faulty):,} of its first {len(lines):,} lines are not valid. "
            f"{_advice(start, name)}"
        )


_TEXT = "Expected UTF-8 or UTF-16 text"


def _advice(start: bytes, name: str) -> str:
    """GB18030 decodes almost anything, so it is believed only where Han characters in common use come out."""
    text = start.decode("gb18030", "replace")
    han = sum("\u4e00" <= c <= "\u9fff" for c in text)
    guess = "GB18030" if han * 10 > len(text) and text.count("\ufffd") * 100 < len(text) else ""
    if guess:
        return f"It looks like {guess}: iconv -f {guess} -t UTF-8 '{name}' > new file"
    return f"{_TEXT}; convert it with iconv"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
