"""The encoding "ngrams": the distinct hashed n-grams of each text, and how often each occurs.

Two kinds:
- windows of n characters. The first and the last may be a blank or the edge of the text, which marks where words and
  texts begin; those between are not, so no window spans a gap. How long windows are depends on whether they hold a Han
  character: few of them say as much as many letters.
- n successive words of the segmenter. The edge of the text counts as a word in windows of two and more.

The hash of characters is the sum of (c[j] + 1) * BASE^j modulo 2^64, a word's the same plus a salt, that of words the
like sum over their hashes. BASE is odd and so has an inverse: the hash of any span is a difference of two prefix sums
times a power of the inverse, which makes words as cheap as windows. The row in the table is the top bits of the hash
after one fold and one multiplication: on real texts that fills the table as chance would, as longer finalizers do. Its
last bit says the kind, 0 for characters and 1 for words, so that a network can weigh the kinds apart.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.text.clean import WALL
from fastserve.types import FloatArray, Ragged

Points = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]
Place = Index | slice

_BITS64 = (1 << 64) - 1
BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(BASE, -1, 1 << 64)
_WORD_BASE = 0xD6E8FEB86659FD93
_MIX = 0x94D049BB133111EB
_WORD_SALT = 0xA0761D6478BD642F
CHARACTERS, WORDS = 0, 1
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
    bits: int = 24

    @classmethod
    def for_language(cls, has_han: bool, han_characters: tuple[int, int] = (1, 3)) -> NgramOptions:
        """The defaults; the one place that holds them. han_characters: what the network prefers."""
        return cls(wide=han_characters) if has_han else cls(wide=han_characters, narrow=(2, 5), words=(1, 3))

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> NgramOptions:
        ranges = {name: tuple(state[name]) for name in ("wide", "narrow", "words")}
        return cls(**ranges, bits=state["bits"])

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def rows(self) -> int:
        return 1 << self.bits


def hash_text(text: str) -> int:
    """Polynomial hash of a string; code points count from 1, so that strings of different length differ."""
    value = 0
    for character in reversed(text):
        value = (value * BASE + ord(character) + 1) & _BITS64
    return value


def hash_word(word: str) -> int:
    """A word's hash is not that of the same characters as a window."""
    return (hash_text(word) + _WORD_SALT) & _BITS64


def hash_words(words: Sequence[str]) -> int:
    value = 0
    for word in reversed(words):
        value = (value * _WORD_BASE + hash_word(word)) & _BITS64
    return value


def row_of(value: int, bits: int, kind: int) -> int:
    """The table row of a hash: fold the upper half in, multiply, keep the top bits, the last of them for the kind."""
    value = (value ^ (value >> 32)) * _MIX & _BITS64
    return value >> (65 - bits) << 1 | kind


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
                found[row_of(hash_text(window), options.bits, CHARACTERS)] += 1
    words = [WALL, *(piece for piece in pieces if not piece.isspace()), WALL]
    for size in range(options.words[0], options.words[1] + 1):
        for start in range(len(words) - size + 1):
            if word_window_counts(words[start : start + size]):
                found[row_of(hash_words(words[start : start + size]), options.bits, WORDS)] += 1
    return dict(sorted(found.items()))


class NgramEncoder:
    """Pieces of many texts to their n-grams, without a loop over texts or characters."""

    def __init__(self, options: NgramOptions) -> None:
        self.options = options
        self._powers = (np.ones(1, np.uint64), np.ones(1, np.uint64))
        self._hashes = _WordHashes()

    def encode(self, pieces: Sequence[str]) -> Ragged:
        """`pieces` as `segment.cut_all` gives them: NUL before, between and behind the texts."""
        points, ends = _spans(pieces)
        edges = points == 0
        count = int(np.count_nonzero(edges)) - 1
        letters = points + _ONE
        characters = list(self._characters(letters, _visible(points), self._wide(points)))
        words = list(self._words(points, letters, pieces, ends))
        texts = self._text_keys(edges, count)
        keys = np.concatenate([texts[:0], *(texts[place] for place, _ in (*characters, *words))])
        keys |= self._table_rows(characters, words).astype(keys.dtype)
        return self._merge(keys, count)

    def encode_one(self, pieces: Sequence[str]) -> Ragged:
        """The same for the pieces of one text without the NULs, with as few steps as there can be."""
        text = "".join(pieces)
        if not text or text.isspace():
            return Ragged(np.zeros(0, np.int32), np.zeros(2, np.int64), np.zeros(0, np.float32))
        points = _points(f"{WALL}{text}{WALL}")
        visible = None if " " not in text and text.isprintable() else _visible(points)
        characters = list(self._characters(points + _ONE, visible, self._wide(points)))
        found: list[tuple[Place, Words]] = []
        if self.options.words[1] >= self.options.words[0]:
            words = [WALL, *pieces, WALL] if visible is None else [WALL, *filter(_is_word, pieces), WALL]
            hashes = np.array([self._hashes[word] for word in words], np.uint64)
            found = list(_word_windows(hashes, None, self.options.words))
        table_rows = self._table_rows(characters, found)
        table_rows.sort()
        values, weights = _count(table_rows)
        return Ragged(values.astype(np.int32), np.array([0, len(values)], np.int64), weights)

    def _table_rows(self, characters: list[tuple[Place, Words]], words: list[tuple[Place, Words]]) -> Words:
        """`row_of` for arrays, laid end to end, words behind characters."""
        values = np.concatenate([_NOTHING, *(hashes for _, hashes in characters), *(hashes for _, hashes in words)])
        values ^= values >> _HALF
        values *= _FACTOR
        values >>= np.uint64(65 - self.options.bits)
        values <<= _ONE
        values[sum(len(hashes) for _, hashes in characters) :] |= _ONE
        return values

    def _characters(self, letters: Words, visible: Mask | None, wide: Mask | None) -> Iterator[tuple[Place, Words]]:
        """For each size a place inside each window, and the hashes of the windows.

        letters: code points + 1; visible: None where only the first and last are blank; wide: None where none is.
        """
        options = self.options
        sizes = options.narrow if wide is None else (1, max(options.narrow[1], options.wide[1]))
        values, inner, any_wide = letters, visible, wide
        for size in range(1, sizes[1] + 1):
            if size > 1:
                values = _longer(values, letters, _BASE)
                any_wide = None if any_wide is None or wide is None else any_wide[1:] | wide[: len(values)]
            if size > 3 and inner is not None and visible is not None:
                inner = inner[:-1] & visible[size - 3 :]
            if size < sizes[0]:
                continue
            if any_wide is None:
                yield _chosen(values, _valid(visible, inner, size), size)
            else:
                kinds = _within(size, options.wide, any_wide) | _within(size, options.narrow, ~any_wide)
                valid = _valid(visible, inner, size)
                yield _chosen(values, kinds if valid is None else valid & kinds, size)

    def _words(
        self, points: Points, letters: Words, pieces: Sequence[str], ends: Index
    ) -> Iterator[tuple[Place, Words]]:
        """The same for words; the NUL between texts counts as one. ends: where each piece ends."""
        if self.options.words[1] < self.options.words[0]:
            return
        starts, ends = _tokens(points, pieces, ends)
        power, inverse = self._powers_up_to(len(letters))
        sums = np.zeros(len(letters) + 1, np.uint64)
        np.cumsum(letters * power, out=sums[1:])
        hashes = (sums[ends] - sums[starts]) * inverse[starts] + np.uint64(_WORD_SALT)
        for place, values in _word_windows(hashes, points[starts] != 0, self.options.words):
            yield starts[place], values

    def _wide(self, points: Points) -> Mask | None:
        """Which characters are wide; None where that makes no difference, because none is or the sizes are the same."""
        if self.options.wide == self.options.narrow or points.max() < _WIDE[0][0]:
            return None
        wide = np.zeros(len(points), np.bool_)
        for first, last in _WIDE:
            wide |= (points >= first) & (points <= last)
        return wide if wide.any() else None

    def _powers_up_to(self, count: int) -> tuple[Words, Words]:
        """BASE^i and BASE^-i for i below `count`, kept for the next block."""
        if len(self._powers[0]) < count:
            self._powers = (_powers(BASE, 2 * count), _powers(_INVERSE, 2 * count))
        power, inverse = self._powers
        return power[:count], inverse[:count]

    def _text_keys(self, edges: Mask, count: int) -> npt.NDArray[Any]:
        """For each position the number of its text, shifted above the bits of a table row."""
        kind = np.uint32 if count << self.options.bits <= 1 << 32 else np.uint64  # the shorter ones sort twice as fast
        texts: npt.NDArray[Any] = np.cumsum(edges, dtype=kind)
        texts -= edges
        texts -= kind(1)  # the NUL behind a text belongs to it; the first one, to none, is not asked for
        texts <<= kind(self.options.bits)
        return texts

    def _merge(self, keys: npt.NDArray[Any], count: int) -> Ragged:
        """Keys (number of the text, table row) to the distinct rows of each text and their counts."""
        keys.sort()
        distinct, weights = _count(keys)
        bounds = np.arange(1, count, dtype=np.uint64) << np.uint64(self.options.bits)
        inner = np.searchsorted(distinct, bounds.astype(keys.dtype))
        offsets = np.concatenate([[0], inner, [len(distinct)]])[: count + 1]
        distinct &= keys.dtype.type(self.options.rows - 1)
        return Ragged(distinct.astype(np.int32), offsets.astype(np.int64), weights)


class _WordHashes(dict[str, int]):
    """Hashes of words that were seen; forgets them when there are too many (about 10 MB)."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 1 << 16:
            self.clear()
        value = self[word] = hash_word(word)
        return value


_NOTHING = np.zeros(0, np.uint64)
_ONE = np.uint64(1)
_BASE, _NEXT_WORD = np.uint64(BASE), np.uint64(_WORD_BASE)
_HALF, _FACTOR = np.uint64(32), np.uint64(_MIX)
_LAST_BLANK = 0x3000


@functools.cache
def _visible_points() -> Mask:
    """Whether a code point is neither NUL nor white space; the one behind _LAST_BLANK stands for all that follow."""
    return np.array([not is_blank(chr(point)) for point in range(_LAST_BLANK + 2)])


def _points(text: str) -> Points:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _visible(points: Points) -> Mask:
    return _visible_points()[np.minimum(points, np.uint32(_LAST_BLANK + 1))]


def _is_word(piece: str) -> bool:
    return not piece.isspace()


def _longer(values: Words, letters: Words, base: np.uint64) -> Words:
    """Hashes of windows of one more, from those of the windows that begin one later."""
    longer = values[1:] * base
    longer += letters[: len(longer)]
    return longer


def _word_windows(hashes: Words, words: Mask | None, sizes: tuple[int, int]) -> Iterator[tuple[Place, Words]]:
    """For each size the number of a word inside each window, and the hashes; `words` is false for NUL."""
    values, inner = hashes, words
    for size in range(1, sizes[1] + 1):
        if size > 1:
            values = _longer(values, hashes, _NEXT_WORD)
        if size > 3 and inner is not None and words is not None:
            inner = inner[:-1] & words[size - 3 :]
        if size >= sizes[0]:
            yield _chosen(values, _valid(words, inner, size), size)


def _within(size: int, sizes: tuple[int, int], mask: Mask) -> Mask:
    return mask if sizes[0] <= size <= sizes[1] else np.zeros_like(mask)


def _valid(visible: Mask | None, inner: Mask | None, size: int) -> Mask | None:
    """Whether a window begins at each position; None: at all (but single blanks at the ends).

    inner, for sizes above 3: whether everything between the first and last of a window is visible.
    """
    if visible is None or inner is None:
        return None
    if size == 1:
        return visible
    if size == 2:
        return visible[:-1] | visible[1:]
    return inner[1 : 1 + max(len(visible) - size + 1, 0)]


def _chosen(values: Words, valid: Mask | None, size: int) -> tuple[Place, Words]:
    """Windows that count: a place inside each (a single's own, else its second), and the hashes."""
    if valid is None:
        return (slice(1, -1), values[1:-1]) if size == 1 else (slice(1, 1 + len(values)), values)
    starts = np.flatnonzero(valid)
    return starts + (size > 1), values[starts]


def _count(keys: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], FloatArray]:
    """Distinct ones of sorted keys, and how often each occurs."""
    bounds = np.ones(len(keys) + 1, np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=bounds[1:-1])
    at = bounds.nonzero()[0]
    weights = np.subtract(at[1:], at[:-1], dtype=np.float32, casting="unsafe")
    return keys[at[:-1]], weights


_MARK = "\x01"


def _spans(pieces: Sequence[str]) -> tuple[Points, Index]:
    """The code points of all pieces end to end, and where each piece ends."""
    marked = _points(_MARK.join(pieces))
    marks = marked == ord(_MARK)
    at = np.flatnonzero(marks)
    if len(at) != len(pieces) - 1:  # a text has that character too
        return _points("".join(pieces)), np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
    ends = np.append(at, len(marked))
    ends -= np.arange(len(ends))
    return marked[~marks], ends


def _tokens(points: Points, pieces: Sequence[str], ends: Index) -> tuple[Index, Index]:
    """Where the pieces that are not white space start and end."""
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    first = points[starts]
    kept = _visible(first) | (first == 0)
    for number in np.flatnonzero(~kept & (ends - starts > 1)).tolist():
        kept[number] = not pieces[number].isspace()
    return (starts, ends) if kept.all() else (starts[kept], ends[kept])


def _powers(base: int, count: int) -> Words:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
