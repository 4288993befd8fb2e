"""Pretrained word vectors into the classic networks.

The text format of word2vec, GloVe and fastText: a word and its numbers, parted by blanks, one word a line; the first
line may be "words dimension" instead. Lines of words that the vocabulary lacks are passed over, not parsed.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import nn

from fastserve import log
from fastserve.errors import ConfigError, DataError
from fastserve.models.network import HasWordEmbeddings
from fastserve.types import FloatArray

MOST_BAD_LINES = 0.01
"""A file with a larger share of lines that cannot be read is refused."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a vocabulary a file knows. bad_lines: numbers, from 1, of the lines that were skipped."""

    found: int
    vocabulary: int
    lines: int
    bad_lines: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.found / max(self.vocabulary, 1)

    def __str__(self) -> str:
        return f"{self.found:,} of {self.vocabulary:,} words ({self.share:.1%}) have pretrained vectors"


def load_embeddings(network: nn.Module, path: Path, vocabulary: Sequence[str]) -> Coverage:
    """Put the vectors of `path` into the network's word table; row i is the word `vocabulary[i]`.

    Words that the file lacks keep their random vectors, scaled to the spread of the file's.
    ConfigError where the network has no word table or one of another dimension; DataError where the file is faulty.
    """
    if not isinstance(network, HasWordEmbeddings):
        raise ConfigError(
            f"model.embeddings: {type(network).__name__} has no table of words; use mlp, textcnn or lstm, or "
            f"leave it out"
        )
    table = network.word_embeddings()
    vectors, is_found, coverage = read_embeddings(path, vocabulary, dim=table.shape[1])
    found = torch.from_numpy(is_found)
    with torch.no_grad():
        words = table[: len(vocabulary)]
        words[~found] *= float(vectors[is_found].std()) / words.std().clamp_min(1e-12)
        words[found] = torch.from_numpy(vectors[is_found]).to(words)
    log.say(f"{path}: {coverage}")
    return coverage


def read_embeddings(
    path: Path, vocabulary: Sequence[str], dim: int | None = None
) -> tuple[FloatArray, np.ndarray, Coverage]:
    """The vectors of `vocabulary`: float32 (V, dim), zero where the file lacks the word; bool (V,); the coverage.

    dim: what the network expects; None takes the file's. The first of two lines for one word counts.
    """
    size = dimension(path)
    if dim is not None and size != dim:
        raise ConfigError(
            f"{path} holds vectors of {size} numbers, but the network's are {dim}: set model.options.dim={size}"
        )
    places = {word.encode("utf-8", "replace"): place for place, word in reversed(list(enumerate(vocabulary)))}
    vectors = np.zeros((len(vocabulary), size), np.float32)
    is_found = np.zeros(len(vocabulary), bool)
    bad, number = [], 0
    with _open(path) as file:
        for number, line in _lines(file):
            word, vector = _parse(line, size, places)
            if vector is None:
                bad.append(number)
            elif len(vector) and not is_found[places[word]]:
                vectors[places[word]], is_found[places[word]] = vector, True
    coverage = Coverage(int(is_found.sum()), len(vocabulary), number, tuple(bad))
    _judge(path, size, coverage)
    return vectors, is_found, coverage


def dimension(path: Path) -> int:
    """How many numbers a vector of the file has."""
    with _open(path) as file:
        first = file.readline(1 << 20)
    fields = first.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[1])
    if len(fields) < 3 or not _are_numbers(fields[-2:]):
        raise DataError(
            f"{path} line 1: expected a word and its numbers, or 'words dimension', found {first[:60]!r}. Only "
            f"the text format of word vectors (.vec, .txt, also .gz) is read"
        )
    return len(fields) - 1


_NONE = np.zeros(0, np.float32)


def _parse(line: bytes, size: int, places: dict[bytes, int]) -> tuple[bytes, FloatArray | None]:
    """The word and its vector: empty where the word is not wanted, None where the line is faulty."""
    fields = line.rstrip().rsplit(b" ", size)  # from the right: a word may hold blanks
    if len(fields) != size + 1:
        return line, None
    word = fields[0]
    if word not in places:
        return word, _NONE
    try:
        vector = np.array(fields[1:], np.float32)
    except ValueError:
        return word, None
    return word, vector if np.isfinite(vector).all() else None


def _judge(path: Path, size: int, coverage: Coverage) -> None:
    bad = coverage.bad_lines
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    if len(bad) > MOST_BAD_LINES * coverage.lines:
        raise DataError(
            f"{path}: {len(bad):,} of {coverage.lines:,} lines are not a word and {size} numbers (lines {shown})"
        )
    if bad:
        log.warn(f"{path}: skipped {len(bad)} lines that are not a word and {size} numbers (lines {shown})")
    if not coverage.found:
        raise DataError(
            f"{path} has none of the {coverage.vocabulary:,} words of the vocabulary: is it for another language, or "
            f"are its words segmented or cased differently?"
        )


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, a header left out."""
    for number, line in enumerate(file, start=1):
        fields = line.split(None, 2) if number == 1 else ()
        if not (len(fields) == 2 and all(field.isdigit() for field in fields)):
            yield number, line


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            yield cast(IO[bytes], file)
    except FileNotFoundError:
        raise ConfigError(f"model.embeddings: there is no file {path}") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path} is not a whole .gz file: {error}") from None


def _are_numbers(fields: Sequence[bytes]) -> bool:
    try:
        return all(np.isfinite(float(field)) for field in fields)
    except ValueError:
        return False
