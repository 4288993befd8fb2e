"""Subword tokens through Hugging Face `tokenizers`: trained on the data, or a tokenizer.json that weights demand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from fastserve.errors import BundleError, ConfigError
from fastserve.files import write_text
from fastserve.text.vocabulary import NAMES
from fastserve.types import Ragged


class SubwordTokenizer:
    """A tokenizer whose own padding is off, and whose truncation is ours: `max_length` ids, special ones kept."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int, min_count: int) -> SubwordTokenizer:
        """Byte-level BPE: every text can be written, nothing is unknown. Ids 0 and 1 are padding and unknown."""
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=min_count,
            special_tokens=list(NAMES),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=24,  # bytes; whole sentences without a blank are no tokens
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def read(cls, path: Path) -> SubwordTokenizer:
        """A user's tokenizer.json; ConfigError where it is none."""
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text("utf-8")))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise ConfigError(
                f"{path} cannot be read as a tokenizer: {error}; expected the tokenizer.json of a Hugging Face model"
            ) from error

    @classmethod
    def load(cls, path: Path) -> SubwordTokenizer:
        """The tokenizer.json of a model folder."""
        try:
            return cls.read(path)
        except ConfigError as error:
            raise BundleError(f"{error}. The model folder is damaged; restore it from a copy") from error

    def save(self, path: Path) -> None:
        write_text(path, self._tokenizer.to_str(pretty=True))

    def __len__(self) -> int:
        """One more than the highest id."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @property
    def tokens(self) -> list[str]:
        """Token of each id; ids that the tokenizer leaves out are empty."""
        tokens = [""] * len(self)
        for token, number in self._tokenizer.get_vocab().items():
            tokens[number] = token
        return tokens

    def limit(self, max_length: int) -> None:
        """Keep at most so many ids of a text, special ones such as [CLS] and [SEP] counted and kept."""
        special = self._tokenizer.num_special_tokens_to_add(False)
        self._tokenizer.enable_truncation(max(max_length, special + 1))

    def encode(self, texts: Sequence[str]) -> Ragged:
        if len(texts) == 1:
            rows = [self._tokenizer.encode(texts[0]).ids]
        else:
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        return Ragged.from_rows([np.array(row, np.int32) for row in rows])
