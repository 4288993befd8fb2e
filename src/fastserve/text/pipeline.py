"""The text pipeline: raw strings to numbers, with the same parts in training and in the server."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.config import TextConfig
from fastserve.device import cores
from fastserve.errors import ConfigError, WorkError, choices
from fastserve.text import state
from fastserve.text.clean import Cleaner
from fastserve.text.encoder import NGRAMS, TOKENS, TextEncoder
from fastserve.text.language import Language, detect, sample
from fastserve.text.ngrams import NgramOptions
from fastserve.text.segment import Segmenter, cut_all, make_segmenter, read_dictionary
from fastserve.text.subword import SubwordTokenizer
from fastserve.text.vocabulary import NAMES, Vocabulary
from fastserve.text.workers import spread
from fastserve.types import Encoded, Ragged, TextPreferences

SUBWORD = "subword"
_TASK_TEXTS = 2_000  # of one task of a worker process
_FEW_TEXTS = 5_000  # up to here processes cost more than they bring
_LENGTHS_SAMPLE = 4_000  # texts whose lengths decide max_length
_LENGTHS_PERCENTILE = 99


class TextPipeline:
    """Cleaning, segmentation and encoding as one saved thing: `create` and `fit`, or `load`; then `encode`.

    segment: what cuts the tokens, decided by `fit`; language: of the texts that it was fitted on.
    """

    def __init__(self, cleaner: Cleaner, encodings: Sequence[str], config: TextConfig, preferences: TextPreferences):
        self.cleaner = cleaner
        self.encodings = tuple(encodings)
        self.config = config
        self.preferences = preferences
        self.segment = config.segment
        self.language = Language("unknown", {})
        self._words: dict[str, int] = {}
        self._cutter: str | None = None
        self._encoder: TextEncoder | None = None

    @classmethod
    def create(cls, config: TextConfig, encodings: Sequence[str], *, preferences: TextPreferences) -> TextPipeline:
        """A pipeline that is still to be fitted. Wrong names and files are refused here, before any work."""
        for name in encodings:
            if name not in (TOKENS, NGRAMS):
                raise ConfigError(f"no encoding is called '{name}': {choices(name, (TOKENS, NGRAMS))}")
        pretrained = config.tokenizer or preferences.tokenizer_file
        # A tokenizer that belongs to weights has its own rule of case.
        lowercase = config.lowercase and (pretrained is None or "lowercase" in config.model_fields_set)
        pipeline = cls(Cleaner(config.clean, lowercase=lowercase), encodings, config, preferences)
        pipeline._check()
        return pipeline

    def _check(self) -> None:
        config = self.config
        if config.segment not in ("auto", SUBWORD):
            make_segmenter(config.segment, {})
        if config.segment == SUBWORD and TOKENS not in self.encodings:
            raise ConfigError(
                "text.segment: subword makes tokens, and this network reads n-grams of words only; leave it out"
            )
        if config.tokenizer is not None and config.segment not in ("auto", SUBWORD):
            raise ConfigError(
                f"text.tokenizer is for segment: subword, and text.segment is '{config.segment}'; leave one of them out"
            )
        if config.user_dictionary is not None:
            if self._wants_subword() and NGRAMS not in self.encodings:
                raise ConfigError("text.user_dictionary does nothing with segment: subword; leave one of the two out")
            words = read_dictionary(Path(config.user_dictionary))
            cleaned = self.cleaner(list(words))
            self._words = {word: count for word, count in zip(cleaned, words.values(), strict=True) if word}

    def _wants_subword(self) -> bool:
        pretrained = self.config.tokenizer or self.preferences.tokenizer_file
        auto = self.preferences.segment == SUBWORD or pretrained is not None
        return TOKENS in self.encodings and (self.config.segment == SUBWORD or (self.config.segment == "auto" and auto))

    # Fitting

    def fit(self, texts: Iterable[str], *, workers: int | None = None) -> None:
        """Decide every `auto`, and learn the vocabulary or train the tokenizer, from all texts or a fair sample.

        Uses `workers` processes (None: the cores) where the texts are many.
        """
        texts = texts if isinstance(texts, list) else list(texts)
        self.language = detect(texts)
        self.segment = self._decide_segment()
        self._cutter = self._decide_cutter()
        segmenter = make_segmenter(self._cutter, self._words) if self._cutter is not None else None
        tokens: Vocabulary | SubwordTokenizer | None = None
        if self.segment == SUBWORD and TOKENS in self.encodings:
            tokens = self._subword(texts)
        elif TOKENS in self.encodings and segmenter is not None:
            tokens = self._learn(texts, segmenter, cores() if workers is None else workers)
        ngrams = None
        if NGRAMS in self.encodings:
            ngrams = NgramOptions.for_language(self.language.has_han, self.preferences.han_characters)
        length = self._decide_max_length(texts, segmenter, tokens)
        self._encoder = TextEncoder(self.cleaner, self.encodings, segmenter, tokens, length, ngrams)

    def _decide_segment(self) -> str:
        if self._wants_subword():
            return SUBWORD
        if self.config.segment != "auto":
            return self.config.segment
        preferred = "jieba" if self.preferences.segment == SUBWORD else self.preferences.segment
        return preferred if self.language.has_han else "whitespace"

    def _decide_cutter(self) -> str | None:
        """What cuts words: the segmenter, or beside subwords (which n-grams do not read) the language's own."""
        if self.segment != SUBWORD:
            return self.segment
        if NGRAMS not in self.encodings:
            return None
        return "jieba" if self.language.has_han else "whitespace"

    def _vocabulary_limit(self) -> int:
        size = self.config.vocabulary_size
        return self.preferences.vocabulary_size if size == "auto" else size

    def _learn(self, texts: list[str], segmenter: Segmenter, workers: int) -> Vocabulary:
        def count(part: list[str]) -> Counter[str]:
            return Counter(cut_all(segmenter, self.cleaner(part)))

        counts: Counter[str] = Counter()
        parts = (texts[start : start + 4 * _TASK_TEXTS] for start in range(0, len(texts), 4 * _TASK_TEXTS))
        for part in spread(count, parts, workers=workers if len(texts) > _FEW_TEXTS else 1):
            counts.update(part)
        return Vocabulary.learn(counts, min_count=self.config.min_count, size=self._vocabulary_limit())

    def _subword(self, texts: list[str]) -> SubwordTokenizer:
        path = self.config.tokenizer or self.preferences.tokenizer_file
        if path is not None:
            return SubwordTokenizer.read(Path(path))
        return SubwordTokenizer.train(
            self.cleaner(texts), size=self._vocabulary_limit(), min_count=self.config.min_count
        )

    def _decide_max_length(
        self, texts: list[str], segmenter: Segmenter | None, tokens: Vocabulary | SubwordTokenizer | None
    ) -> int:
        limit = self.preferences.max_length if self.config.max_length == "auto" else self.config.max_length
        if tokens is None or self.config.max_length != "auto":
            return limit
        encoder = TextEncoder(self.cleaner, (TOKENS,), segmenter, tokens, limit)
        lengths = encoder.encode(sample(texts, _LENGTHS_SAMPLE))[TOKENS].lengths
        usual = int(np.ceil(np.percentile(lengths, _LENGTHS_PERCENTILE))) if len(lengths) else 1
        return max(1, usual)

    # Encoding

    @property
    def fitted(self) -> TextEncoder:
        if self._encoder is None:
            raise WorkError("this text pipeline was not fitted: call fit(texts) first, or load a saved one")
        return self._encoder

    @property
    def max_length(self) -> int:
        """Most tokens kept of a text; n-grams are taken from the whole text."""
        return self.fitted.max_length

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Every encoding of every text, in this process. A text's rows do not depend on what stands beside it."""
        return self.fitted.encode(texts)

    def encode_blocks(self, blocks: Iterable[Sequence[str]], *, workers: int) -> Iterator[Encoded]:
        """`encode` for each block, in order, by `workers` processes where the texts are many."""
        if isinstance(self.fitted.tokens, SubwordTokenizer):
            workers = 1  # it has threads of its own, on all cores
        blocks, few = _are_few(iter(blocks)) if workers > 1 else (blocks, True)
        if few:
            yield from map(self.encode, blocks)
            return
        sizes: list[int] = []
        parts = spread(self.encode, _tasks(blocks, sizes), workers=workers)
        for part in parts:
            wanted = sizes.pop(0)
            found = [part, *itertools.islice(parts, wanted - 1)]
            yield (
                {name: Ragged.concatenate([one[name] for one in found]) for name in self.encodings}
                if wanted > 1
                else part
            )

    def segments(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text after cleaning, for people to look at."""
        segmenter = self.fitted.segmenter or make_segmenter("character", {})
        return [[piece for piece in segmenter.cut(text) if not piece.isspace()] for text in self.cleaner(texts)]

    def vocabulary_size(self, encoding: str) -> int:
        """One more than the highest id or row of that encoding."""
        if encoding == NGRAMS and self.fitted.ngrams is not None:
            return self.fitted.ngrams.rows
        if encoding == TOKENS and self.fitted.tokens is not None:
            return len(self.fitted.tokens)
        raise ConfigError(f"this pipeline has no encoding '{encoding}': {choices(encoding, self.encodings)}")

    @property
    def vocabulary(self) -> list[str] | None:
        """The token of each id of "tokens"; None where there is no such encoding."""
        tokens = self.fitted.tokens
        if isinstance(tokens, Vocabulary):
            return [*NAMES, *tokens.tokens]
        return None if tokens is None else tokens.tokens

    # Saving

    def save(self, folder: Path) -> dict[str, Any]:
        """What the manifest holds; the vocabulary, tokenizer and user dictionary become files in `folder`."""
        decided = state.Decided(self.segment, self._cutter, self._words, self.language)
        return state.save(folder, self.fitted, decided)

    @classmethod
    def load(cls, folder: Path, saved: dict[str, Any]) -> TextPipeline:
        """BundleError where the state or a file is damaged or from a newer FastServe."""
        encoder, decided = state.load(folder, saved)
        config = TextConfig(
            clean=list(encoder.cleaner.steps),
            lowercase=encoder.cleaner.lowercase,
            segment=decided.segment,
            max_length=encoder.max_length,
        )
        pipeline = cls(encoder.cleaner, encoder.encodings, config, TextPreferences())
        pipeline.segment, pipeline._cutter = decided.segment, decided.cutter
        pipeline._words, pipeline.language = decided.words, decided.language
        pipeline._encoder = encoder
        return pipeline


def _are_few(blocks: Iterator[Sequence[str]]) -> tuple[Iterable[Sequence[str]], bool]:
    """The same blocks, and whether they hold at most _FEW_TEXTS texts."""
    seen: list[Sequence[str]] = []
    total = 0
    for block in blocks:
        seen.append(block)
        total += len(block)
        if total > _FEW_TEXTS:
            return itertools.chain(seen, blocks), False
    return seen, True


def _tasks(blocks: Iterable[Sequence[str]], sizes: list[int]) -> Iterator[Sequence[str]]:
    """Blocks cut into tasks; `sizes` is told how many became of each."""
    for block in blocks:
        starts = range(0, max(len(block), 1), _TASK_TEXTS)
        sizes.append(len(starts))
        for start in starts:
            yield block[start : start + _TASK_TEXTS]
