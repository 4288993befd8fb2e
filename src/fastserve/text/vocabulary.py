"""Words to ids: 0 is padding, 1 a word that was not learned, the rest by falling frequency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fastserve.errors import BundleError
from fastserve.files import write_text
from fastserve.text.clean import WALL
from fastserve.types import IntArray

PADDING, UNKNOWN = 0, 1
NAMES = ("[PAD]", "[UNK]")
BLANK, EDGE = -1, -2
"""What `ids` gives for a piece of white space, and for the NUL between texts."""


class Vocabulary:
    """`tokens` are the learned ones; the first has id 2."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self._ids = _Ids({token: number for number, token in enumerate(self.tokens, start=len(NAMES))})
        self._ids.update({" ": BLANK, WALL: EDGE})

    def __len__(self) -> int:
        return len(NAMES) + len(self.tokens)

    @classmethod
    def learn(cls, counts: Mapping[str, int], *, min_count: int, size: int) -> Vocabulary:
        """The most frequent tokens, at most `size` ids in all; equally frequent ones by their text."""
        known = [
            token for token, count in counts.items() if count >= min_count and token != WALL and not token.isspace()
        ]
        known.sort(key=lambda token: (-counts[token], token))
        return cls(known[: max(size - len(NAMES), 0)])

    def ids(self, pieces: Sequence[str]) -> IntArray:
        """An id for each piece of a segmenter, BLANK and EDGE included. int32 (len(pieces),)."""
        return np.fromiter(map(self._ids.__getitem__, pieces), np.int32, len(pieces))

    def ids_of_one(self, pieces: Iterable[str]) -> list[int]:
        """The ids of one text's tokens, white space left out."""
        return [number for number in map(self._ids.__getitem__, pieces) if number >= 0]

    def save(self, path: Path) -> None:
        """One token a line, line breaks and backslashes escaped; the first line has id 2."""
        write_text(path, "".join(f"{_escape(token)}\n" for token in self.tokens))

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        try:
            lines = path.read_bytes().decode("utf-8").split("\n")
        except FileNotFoundError:
            raise BundleError(f"{path} is missing: the model folder is incomplete; restore it from a copy") from None
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} is damaged: {error}; restore it from a copy") from error
        return cls([_unescape(line) for line in lines[:-1]])


class _Ids(dict[str, int]):
    """Id of a piece; what was not learned is unknown, unless it is white space."""

    def __missing__(self, piece: str) -> int:
        return BLANK if piece.isspace() else UNKNOWN


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def _escape(token: str) -> str:
    for plain, escaped in _ESCAPES.items():
        token = token.replace(plain, escaped)
    return token


def _unescape(line: str) -> str:
    if "\\" not in line:
        return line
    parts = [part.replace("\\n", "\n").replace("\\r", "\r") for part in line.split("\\\\")]
    return "\\".join(parts)
