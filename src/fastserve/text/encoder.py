"""Encoding: what a fitted pipeline does to texts, in training and in the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastserve.text.clean import Cleaner
from fastserve.text.ngrams import NgramEncoder, NgramOptions
from fastserve.text.segment import Segmenter, cut_all, cut_one
from fastserve.text.subword import SubwordTokenizer
from fastserve.text.vocabulary import EDGE, Vocabulary
from fastserve.types import Encoded, IntArray, Ragged

TOKENS, NGRAMS = "tokens", "ngrams"

_BLOCK_CHARACTERS = 20_000  # of one pass of numpy: its arrays stay in the second-level cache
_FEW_TEXTS, _FEW_CHARACTERS = 2, 1_000  # up to here plain Python beats arrays


@dataclass(frozen=True)
class TextEncoder:
    """The parts that fitting made, and nothing else.

    encodings: which, in this order; segmenter: for words and n-grams; tokens: what gives "tokens" its ids, at most
    `max_length` a text; ngrams: which n-grams.
    """

    cleaner: Cleaner
    encodings: tuple[str, ...]
    segmenter: Segmenter | None = None
    tokens: Vocabulary | SubwordTokenizer | None = None
    max_length: int = 512
    ngrams: NgramOptions | None = None
    _ngrams: NgramEncoder | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.ngrams is not None:
            object.__setattr__(self, "_ngrams", NgramEncoder(self.ngrams))
        if isinstance(self.tokens, SubwordTokenizer):
            self.tokens.limit(self.max_length)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Every encoding of every text; the same for a text whatever stands beside it."""
        if 0 < len(texts) <= _FEW_TEXTS and sum(map(len, texts)) <= _FEW_CHARACTERS:
            parts = [self._encode_one(text) for text in self.cleaner(texts)]
        else:
            parts = [self._encode_block(self.cleaner(block)) for block in blocks(texts, _BLOCK_CHARACTERS)]
        if len(parts) == 1:
            return parts[0]
        return {name: Ragged.concatenate([part[name] for part in parts]) for name in self.encodings}

    def _encode_block(self, texts: list[str]) -> Encoded:
        pieces = cut_all(self.segmenter, texts) if self.segmenter is not None else []
        encoded: Encoded = {}
        for name in self.encodings:
            if name == NGRAMS and self._ngrams is not None:
                encoded[name] = self._ngrams.encode(pieces)
            elif isinstance(self.tokens, SubwordTokenizer):
                encoded[name] = self.tokens.encode(texts)
            elif self.tokens is not None:
                encoded[name] = ragged_tokens(self.tokens.ids(pieces), self.max_length)
        return encoded

    def _encode_one(self, text: str) -> Encoded:
        pieces = cut_one(self.segmenter, text) if self.segmenter is not None else []
        encoded: Encoded = {}
        for name in self.encodings:
            if name == NGRAMS and self._ngrams is not None:
                encoded[name] = self._ngrams.encode_one(pieces)
            elif isinstance(self.tokens, SubwordTokenizer):
                encoded[name] = self.tokens.encode([text])
            elif self.tokens is not None:
                ids = np.array(self.tokens.ids_of_one(pieces)[: self.max_length], np.int32)
                encoded[name] = Ragged(ids, np.array([0, len(ids)], np.int64))
        return encoded


def blocks(texts: Sequence[str], characters: int) -> Iterator[Sequence[str]]:
    """Successive slices of about so many characters, at least one."""
    start = total = 0
    for number, text in enumerate(texts):
        total += len(text) + 1
        if total >= characters:
            yield texts[start : number + 1]
            start, total = number + 1, 0
    if start < len(texts) or not texts:
        yield texts[start:]


def ragged_tokens(codes: IntArray, max_length: int) -> Ragged:
    """Ids of pieces, texts parted by EDGE, to rows of at most `max_length` without the white space."""
    kept = codes >= 0
    before = np.cumsum(kept)[codes == EDGE]
    values, lengths = codes[kept], np.diff(before)
    if len(lengths) and lengths.max() > max_length:
        place = np.arange(len(values)) - np.repeat(before[:-1], lengths)
        values = values[place < max_length]
        lengths = np.minimum(lengths, max_length)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Ragged(values, offsets)
