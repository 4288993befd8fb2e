"""The encoding "ngrams": the distinct hashed n-grams of each text, and how often each occurs.

Two kinds, each with its own salt for each n:
- windows of n characters. The first and the last may be a blank or the edge of the text, which marks where words and
  texts begin; those between are not, so no window spans a gap. How long windows are depends on whether they hold a Han
  character: few of them say as much as many letters.
- n successive words of the segmenter. The edge of the text counts as a word in windows of two and more.

A window's hash is the polynomial sum of c[j] * BASE^j modulo 2^64, its row in the table the top bits of that hash after
the finalizer of splitmix64 (Steele, Lea and Flood 2014). BASE is odd and so has an inverse: the hash of any span is a
difference of two prefix sums times a power of the inverse, which makes words as cheap as windows.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.text.clean import WALL
from fastserve.types import FloatArray, IntArray, Ragged

Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]

_BITS64 = (1 << 64) - 1
BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(BASE, -1, 1 << 64)
_WORD_BASE = 0xD6E8FEB86659FD93
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD_KIND = 64  # salts of word n-grams begin here, those of characters at 0
_WIDE = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # Han, kana and their marks


@dataclass(frozen=True, slots=True)
class NgramOptions:
    """Which n-grams are taken; every range is (shortest, longest), (1, 0) takes none.

    wide: characters in windows with a Han character; narrow: in windows without; words: in windows of words; bits: the
    table has 2^bits rows.
    """

    wide: tuple[int, int] = (1, 3)
    narrow: tuple[int, int] = (1, 3)
    words: tuple[int, int] = (1, 2)
    bits: int = 21

    @classmethod
    def for_language(cls, has_han: bool) -> NgramOptions:
        """The defaults; the one place that holds them."""
        return cls() if has_han else cls(narrow=(2, 5), words=(1, 3))

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> NgramOptions:
        ranges = {name: tuple(state[name]) for name in ("wide", "narrow", "words")}
        return cls(**ranges, bits=state["bits"])

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def rows(self) -> int:
        return 1 << self.bits


def salt(kind: int, size: int) -> int:
    """What is added to the hash of an n-gram of that kind (0 characters, 64 words) and size."""
    return (kind + size) * _MIX[0] & _BITS64


def hash_text(text: str) -> int:
    """The polynomial hash of a string: sum of code point j times BASE^j, modulo 2^64."""
    value = 0
    for character in reversed(text):
        value = (value * BASE + ord(character)) & _BITS64
    return value


def hash_words(words: Sequence[str]) -> int:
    value = 0
    for word in reversed(words):
        value = (value * _WORD_BASE + hash_text(word)) & _BITS64
    return value


def row_of(value: int, salted: int, bits: int) -> int:
    """The table row of a hash. The last step of splitmix64's finalizer does not reach the top bits and is left out."""
    value = (value + salted) & _BITS64
    value = (value ^ (value >> 30)) * _MIX[0] & _BITS64
    value = (value ^ (value >> 27)) * _MIX[1] & _BITS64
    return value >> (64 - bits)


def is_blank(character: str) -> bool:
    return character == WALL or character.isspace()


def is_wide(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _WIDE)


def character_window_counts(window: str, options: NgramOptions) -> bool:
    """Whether a window of characters is one of the n-grams."""
    visible = [not is_blank(character) for character in window]
    if not any(visible) or not all(visible[1:-1]):
        return False
    low, high = options.wide if any(map(is_wide, window)) else options.narrow
    return low <= len(window) <= high


def word_window_counts(words: Sequence[str]) -> bool:
    """Whether a window of words (NUL at the edges of the text) is one of the n-grams."""
    return all(word != WALL for word in words[1:-1]) and any(word != WALL for word in words)


def reference(pieces: Sequence[str], options: NgramOptions) -> dict[int, int]:
    """Row to count for one text's pieces, straight from the definition. The fast paths are tested against it."""
    found: Counter[int] = Counter()
    text = f"{WALL}{''.join(pieces)}{WALL}"
    for size in range(1, max(options.wide[1], options.narrow[1]) + 1):
        for start in range(len(text) - size + 1):
            window = text[start : start + size]
            if character_window_counts(window, options):
                found[row_of(hash_text(window), salt(0, size), options.bits)] += 1
    words = [WALL, *(piece for piece in pieces if not piece.isspace()), WALL]
    for size in range(options.words[0], options.words[1] + 1):
        for start in range(len(words) - size + 1):
            if word_window_counts(words[start : start + size]):
                value = hash_words(words[start : start + size])
                found[row_of(value, salt(_WORD_KIND, size), options.bits)] += 1
    return dict(sorted(found.items()))


class NgramEncoder:
    """Pieces of many texts to their n-grams, without a loop over texts or characters."""

    def __init__(self, options: NgramOptions) -> None:
        self.options = options
        self._powers = (np.ones(1, np.uint64), np.ones(1, np.uint64))

    def encode(self, pieces: Sequence[str]) -> Ragged:
        """`pieces` as `segment.cut_all` gives them: NUL before, between and behind the texts."""
        text = "".join(pieces)
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        edges = points == 0
        rows = np.cumsum(edges) - edges - 1  # the NUL behind a text belongs to it, the first to none
        count = int(edges.sum()) - 1
        shift = np.uint64(self.options.bits)
        keys = [
            (rows[at].astype(np.uint64) << shift) | self._mix(values, salted)
            for at, values, salted in (*self._characters(points), *self._words(points, edges, pieces))
        ]
        return self._merge(np.concatenate(keys) if keys else np.zeros(0, np.uint64), count)

    def _mix(self, values: Words, salted: int) -> Words:
        """`row_of` for an array."""
        values = values + np.uint64(salted)
        values ^= values >> np.uint64(30)
        values *= np.uint64(_MIX[0])
        values ^= values >> np.uint64(27)
        values *= np.uint64(_MIX[1])
        values >>= np.uint64(64 - self.options.bits)
        return values

    def _characters(self, points: npt.NDArray[np.uint32]) -> Iterator[tuple[Index, Words, int]]:
        """For each size: a position inside each window, its hash, and the salt."""
        options = self.options
        visible = ~_blank_points()[np.minimum(points, _LAST_BLANK + 1)]
        wide = _wide_points(points) if options.wide != options.narrow else visible
        letters = points.astype(np.uint64)
        values, inner, any_wide = letters, visible, wide
        for size in range(1, max(options.wide[1], options.narrow[1]) + 1):
            if size > 1:
                values = values[1:] * np.uint64(BASE)
                values += letters[: len(values)]
                any_wide = any_wide[1:] | wide[: len(values)]
            if size > 3:
                inner = inner[:-1] & visible[size - 3 :]
            valid = _valid(visible, inner, size)
            if options.wide != options.narrow:
                valid &= _in(size, options.wide, any_wide) | _in(size, options.narrow, ~any_wide)
            elif not options.wide[0] <= size <= options.wide[1]:
                continue
            starts = np.flatnonzero(valid)
            yield starts + (size > 1), values[starts], salt(0, size)

    def _words(
        self, points: npt.NDArray[np.uint32], edges: Mask, pieces: Sequence[str]
    ) -> Iterator[tuple[Index, Words, int]]:
        """The same for words; NUL, which is their edge, hashes to 0."""
        low, high = self.options.words
        if high < low:
            return
        starts, ends = _tokens(points, pieces)
        power, inverse = self._powers_up_to(len(points))
        sums = np.zeros(len(points) + 1, np.uint64)
        np.cumsum(points * power, out=sums[1:])
        letters = (sums[ends] - sums[starts]) * inverse[starts]
        words = ~edges[starts]
        values, inner = letters, words
        for size in range(1, high + 1):
            if size > 1:
                values = values[1:] * np.uint64(_WORD_BASE)
                values += letters[: len(values)]
            if size > 3:
                inner = inner[:-1] & words[size - 3 :]
            if size >= low:
                at = np.flatnonzero(_valid(words, inner, size))
                yield starts[at + (size > 1)], values[at], salt(_WORD_KIND, size)

    def _powers_up_to(self, count: int) -> tuple[Words, Words]:
        """BASE^i and BASE^-i for i below at least `count`, kept for the next block."""
        if len(self._powers[0]) < count:
            self._powers = (_powers(BASE, 2 * count), _powers(_INVERSE, 2 * count))
        return self._powers[0][:count], self._powers[1][:count]

    def _merge(self, keys: Words, count: int) -> Ragged:
        """Keys (text, then table row) sorted and counted."""
        bits = self.options.bits
        if count << bits <= 1 << 32:
            keys = keys.astype(np.uint32)  # sorts twice as fast
        keys.sort()
        first = np.ones(len(keys), np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        at = np.flatnonzero(first)
        distinct = keys[at]
        weights = np.diff(at, append=len(keys)).astype(np.float32)
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(
            np.bincount((distinct >> distinct.dtype.type(bits)).astype(np.int64), minlength=count), out=offsets[1:]
        )
        return Ragged((distinct & distinct.dtype.type(self.options.rows - 1)).astype(np.int32), offsets, weights)


class NgramRows:
    """The n-grams of one short text: rows are remembered by their text, which beats arrays where few are asked for."""

    def __init__(self, options: NgramOptions) -> None:
        self.options = options
        longest = max(options.wide[1], options.narrow[1])
        self._characters = [_Remembered(self._character_row) for _ in range(longest)]
        self._words = [_Remembered(self._word_row) for _ in range(options.words[0], options.words[1] + 1)]

    def encode(self, pieces: Sequence[str]) -> tuple[IntArray, FloatArray]:
        """Rows, rising, and counts of the pieces of one text."""
        text = f"{WALL}{''.join(pieces)}{WALL}"
        found: list[int] = []
        windows: Sequence[str] = text
        for size, remembered in enumerate(self._characters, start=1):
            if size > 1:
                windows = list(map(operator.add, windows, text[size - 1 :]))
            found += map(remembered.__getitem__, windows)
        words = [WALL, *[piece for piece in pieces if not piece.isspace()], WALL]
        for size, remembered_words in enumerate(self._words, start=self.options.words[0]):
            found += map(remembered_words.__getitem__, zip(*[words[skip:] for skip in range(size)], strict=False))
        return _distinct(found)

    def _character_row(self, window: str) -> int:
        if not character_window_counts(window, self.options):
            return _NONE
        return row_of(hash_text(window), salt(0, len(window)), self.options.bits)

    def _word_row(self, words: tuple[str, ...]) -> int:
        if not word_window_counts(words):
            return _NONE
        return row_of(hash_words(words), salt(_WORD_KIND, len(words)), self.options.bits)


_NONE = -1
_MOST_REMEMBERED = 1 << 16  # of each kind and size: about 8 MB


class _Remembered(dict[Any, int]):
    """Key to row, computed when first asked for; forgets everything when full."""

    def __init__(self, compute: Callable[[Any], int]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, key: Any) -> int:
        if len(self) >= _MOST_REMEMBERED:
            self.clear()
        row = self[key] = self._compute(key)
        return row


def _distinct(found: list[int]) -> tuple[IntArray, FloatArray]:
    """Sorted distinct rows and their counts; _NONE is left out."""
    rows = np.array(found, np.int32)
    rows.sort()
    rows = rows[found.count(_NONE) :]
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    at = first.nonzero()[0]
    if len(at) == len(rows):
        return rows, np.ones(len(rows), np.float32)
    ends = np.empty_like(at)
    ends[:-1], ends[-1:] = at[1:], len(rows)
    return rows[at], (ends - at).astype(np.float32)


_LAST_BLANK = 0x3000


@functools.cache
def _blank_points() -> Mask:
    """Whether a code point up to _LAST_BLANK + 1, which stands for all behind it, is NUL or white space."""
    return np.array([is_blank(chr(point)) for point in range(_LAST_BLANK + 2)])


def _wide_points(points: npt.NDArray[np.uint32]) -> Mask:
    wide = np.zeros(len(points), np.bool_)
    for first, last in _WIDE:
        wide |= (points >= first) & (points <= last)
    return wide


def _in(size: int, sizes: tuple[int, int], mask: Mask) -> Mask | np.bool_:
    return mask if sizes[0] <= size <= sizes[1] else np.False_


def _valid(visible: Mask, inner: Mask, size: int) -> Mask:
    """Whether a window begins at each position. `inner` (sizes above 3): all visible between its first and last."""
    count = max(len(visible) - size + 1, 0)
    if size == 1:
        return visible.copy()
    if size == 2:
        return visible[:-1] | visible[1:]
    return visible[1 : 1 + count].copy() if size == 3 else inner[1 : 1 + count].copy()


def _tokens(points: npt.NDArray[np.uint32], pieces: Sequence[str]) -> tuple[Index, Index]:
    """Where the pieces that are not white space start and end in `points`."""
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    blank = _blank_points()[np.minimum(points[starts], _LAST_BLANK + 1)]
    blank &= points[starts] != 0
    for number in np.flatnonzero(blank & (lengths > 1)).tolist():
        blank[number] = pieces[number].isspace()
    return starts[~blank], ends[~blank]


def _powers(base: int, count: int) -> Words:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
