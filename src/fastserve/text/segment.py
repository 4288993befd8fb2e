"""Segmentation: a text to its pieces, in order and without loss.

`cut` gives pieces that joined are the text again, white space included; the tokens are the pieces that are not white
space. The built-in segmenters are walled, as the cleaning steps are: NUL is a piece of its own and never part of
another, so a block of texts joined by NUL is cut by one call. A user's own segmenter (`module:Class`) needs only
`cut(text) -> list[str]`, may lose or change characters, and is called text by text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fastserve.errors import ConfigError
from fastserve.plugins import SEGMENTERS
from fastserve.text.clean import WALL


class Segmenter(Protocol):
    def cut(self, text: str) -> list[str]:
        """The pieces of `text`."""
        ...


class JiebaSegmenter:
    """jieba's dictionary and algorithm in Rust, words unknown to the dictionary found by its hidden Markov model."""

    walled: ClassVar[bool] = True

    def __init__(self, *, hmm: bool = True) -> None:
        import rjieba  # loads its dictionary, which English models do not need

        self.hmm = hmm
        self._cut = rjieba.cut

    @property
    def options(self) -> dict[str, Any]:
        """Saved with the model: words depend on it."""
        return {"hmm": self.hmm}

    def cut(self, text: str) -> list[str]:
        pieces: list[str] = self._cut(text, self.hmm)
        return pieces


_HAN = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_MARKS = "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0e7f"  # Python's \w leaves them out
_LETTER = rf"(?:[^\W_{_HAN}]|[{_MARKS}])"
_CHARACTERS = re.compile(rf"{_LETTER}+|\s+|.", re.DOTALL)
_WORDS = re.compile(rf"\d+(?:[.,:]\d+)+(?!{_LETTER})|{_LETTER}+(?:['’]{_LETTER}+)*|\s+|.", re.DOTALL)


class CharacterSegmenter:
    """Each Han character and each mark by itself; letters and digits in runs."""

    walled: ClassVar[bool] = True

    def cut(self, text: str) -> list[str]:
        return _CHARACTERS.findall(text)


class WhitespaceSegmenter:
    """Words as written with blanks, "don't" and "3.14" whole; each mark and each Han character by itself."""

    walled: ClassVar[bool] = True

    def cut(self, text: str) -> list[str]:
        return _WORDS.findall(text)


class DictionarySegmenter:
    """Keeps the user's words whole wherever they stand, and leaves what is between them to another segmenter.

    From left to right; of words that begin at the same character the one with the higher frequency is taken, and among
    equals the longest. Within a run of Latin letters or digits a word counts only where it is the whole run.
    """

    def __init__(self, inner: Segmenter, words: Mapping[str, int]) -> None:
        self.inner = inner
        self.walled = is_walled(inner)
        self._words = dict(words)
        self._lengths: dict[str, list[int]] = {}
        for word in words:
            self._lengths.setdefault(word[0], []).append(len(word))
        self._lengths = {first: sorted(set(lengths), reverse=True) for first, lengths in self._lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, self._lengths))}]")

    def cut(self, text: str) -> list[str]:
        pieces: list[str] = []
        last = at = 0
        while (match := self._first.search(text, at)) is not None:
            at = match.start()
            word = self._word_at(text, at)
            if word is None:
                at += 1
                continue
            if last < at:
                pieces += self.inner.cut(text[last:at])
            pieces.append(word)
            last = at = at + len(word)
        return pieces + self.inner.cut(text[last:]) if last < len(text) else pieces

    def _word_at(self, text: str, at: int) -> str | None:
        found = None
        for length in self._lengths[text[at]]:  # the longest first
            word = text[at : at + length]
            frequency = self._words.get(word)
            if frequency is None or (found is not None and frequency <= self._words[found]):
                continue
            if not (_in_run(text, at) or _in_run(text, at + length)):
                found = word
        return found


_RUN = re.compile(r"[0-9A-Za-z]{2}")


def _in_run(text: str, at: int) -> bool:
    """Whether position `at` parts two Latin letters or digits."""
    return 0 < at < len(text) and _RUN.match(text, at - 1) is not None


def is_walled(segmenter: Segmenter) -> bool:
    return bool(getattr(segmenter, "walled", False))


def make_segmenter(name: str, words: Mapping[str, int], options: Mapping[str, Any] | None = None) -> Segmenter:
    """The segmenter of that name; `words` (with their frequencies) stay whole; `options` are the segmenter's own."""
    segmenter: Segmenter = SEGMENTERS.load(name)(**(options or {}))
    return DictionarySegmenter(segmenter, words) if words else segmenter


def options_of(segmenter: Segmenter) -> dict[str, Any]:
    """What `make_segmenter` needs to make it again, beside its name and words."""
    if isinstance(segmenter, DictionarySegmenter):
        return options_of(segmenter.inner)
    return dict(getattr(segmenter, "options", {}))


def cut_all(segmenter: Segmenter, texts: Sequence[str]) -> list[str]:
    """The pieces of all texts (which hold no NUL) in one list, NUL before, between and behind the texts."""
    if is_walled(segmenter):
        return segmenter.cut(WALL.join(["", *texts, ""]) if texts else WALL)
    pieces = [WALL]
    for text in texts:
        pieces += cut_one(segmenter, text)
        pieces.append(WALL)
    return pieces


def cut_one(segmenter: Segmenter, text: str) -> list[str]:
    """The pieces of one text that holds no NUL."""
    pieces = segmenter.cut(text)
    return pieces if is_walled(segmenter) else [piece for piece in pieces if piece and WALL not in piece]


_ENTRY = re.compile(r"(.+?)(?:\s+([0-9]+)(?:\s+[A-Za-z]+)?)?")


def parse_dictionary(lines: Iterable[str]) -> dict[str, int]:
    """Word to frequency (0 where none is given); a line is `word`, `word frequency` or `word frequency tag`."""
    entries = (_ENTRY.fullmatch(line.strip()) for line in lines)
    return {entry[1]: int(entry[2] or 0) for entry in entries if entry is not None}


def read_dictionary(path: Path) -> dict[str, int]:
    """The words of a user dictionary file (UTF-8); ConfigError where it cannot be read or holds none."""
    try:
        words = parse_dictionary(path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"text.user_dictionary {path} cannot be read: {error}; expected a UTF-8 file with one word a line"
        ) from error
    if not words:
        raise ConfigError(f"text.user_dictionary {path} holds no word; expected one a line, or leave the setting out")
    return words
