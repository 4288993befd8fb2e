"""The tokenizer of a language model: every text to ids and back, trained here or read from a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Encoding

from fastserve.errors import BundleError, ConfigError, DataError
from fastserve.files import write_json, write_text
from fastserve.text.decoding import TextStream, TokenBytes, token_bytes
from fastserve.text.encoder import blocks
from fastserve.text.tokenizer_folder import SETTINGS, TOKENIZER, read_settings, role_of
from fastserve.types import IntArray, Ragged

PAD, END, BEGIN = "<|pad|>", "<|end|>", "<|begin|>"
TURN, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, END, BEGIN, TURN, TURN_END)
"""Special tokens of a tokenizer trained here, with the ids 0 to 4."""

_VERSION = 1
_BYTES = 256
_MOST_BYTES = 24  # of a token: whole sentences without a blank are no tokens
_BLOCK_CHARACTERS = 1_000_000  # given to the library's threads at once, which need about 100 bytes a character
_WORDS = r"""'(?i:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
"""Tokens stay within these: a word with the blank before it, one digit, punctuation, line breaks, blanks."""


@dataclass(frozen=True)
class Density:
    """How long texts become as tokens, counted over some texts."""

    characters: int
    bytes: int
    tokens: int

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(self.tokens, 1)

    @property
    def characters_per_byte(self) -> float:
        """What a token for each byte would give; a token for each character gives 1."""
        return self.characters / max(self.bytes, 1)

    def __str__(self) -> str:
        return (
            f"{self.characters_per_token:.2f} characters a token, where a token for each byte has "
            f"{self.characters_per_byte:.2f} and one for each character 1.00"
        )


class LanguageTokenizer:
    """Texts to ids without any special token among them, whatever a text says, and ids back to text.

    settings: the content of tokenizer_config.json, by which the tokenizer knows its special tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], where: str = "tokenizer") -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "<|end|>" in a text is text
        self._tokenizer = tokenizer
        self.settings = dict(settings)
        self.where = where

    # Making

    @classmethod
    def train(
        cls, texts: Iterable[str], *, size: int, special: Sequence[str] = SPECIAL, min_count: int = 2
    ) -> LanguageTokenizer:
        """Byte-level BPE with at most `size` ids: every text can be written, and comes back as it was.

        special: at least PAD, END and BEGIN; they get the first ids. min_count: how often a pair must occur to become
        a token. Memory grows with the distinct words of `texts`; give a fair sample of a large corpus.
        """
        least = _BYTES + len(special)
        if size < least:
            raise ConfigError(
                f"a vocabulary of {size:,} ids is too small: the bytes and special tokens alone are {least}"
            )
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        pre = tokenizers.pre_tokenizers
        tokenizer.pre_tokenizer = pre.Sequence(
            [
                pre.Split(tokenizers.Regex(_WORDS), "isolated"),
                pre.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=min_count,
            special_tokens=list(special),
            initial_alphabet=pre.ByteLevel.alphabet(),
            max_token_length=_MOST_BYTES,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, _own_settings())

    @classmethod
    def read(cls, path: Path, *, eos: str | None = None) -> LanguageTokenizer:
        """A local Hugging Face tokenizer: its folder, or its tokenizer.json. ConfigError where it is none.

        eos: the token that ends a text, where the folder names none.
        """
        file = path / TOKENIZER if path.is_dir() else path
        tokenizer = _read_tokenizer(file)
        settings = read_settings(file.parent, tokenizer)
        if eos is not None:
            settings["eos_token"] = eos
        made = cls(tokenizer, settings, str(file.parent))
        made.check()
        return made

    def check(self) -> None:
        """ConfigError where there is no end-of-text token, or the tokens cannot be written as text."""
        _ = self.eos, self.bos, self.pad, self.bytes

    # Special tokens

    @cached_property
    def eos(self) -> int:
        """The id that ends a text."""
        return role_of("eos", self.settings, self._tokenizer, self.where)

    @cached_property
    def bos(self) -> int | None:
        """The id that begins a text, where the tokenizer has one."""
        if self.settings.get("bos_token") is None:
            return None
        return role_of("bos", self.settings, self._tokenizer, self.where)

    @cached_property
    def pad(self) -> int:
        """The id that fills up; the end of a text where the tokenizer has none."""
        if self.settings.get("pad_token") is None:
            return self.eos
        return role_of("pad", self.settings, self._tokenizer, self.where)

    @cached_property
    def special(self) -> dict[str, int]:
        """Every special token and its id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items()) if token.special}

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the highest id."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @cached_property
    def bytes(self) -> TokenBytes:
        """What each token stands for."""
        return token_bytes(json.loads(self._tokenizer.to_str()), self._tokenizer.get_vocab(), self.where)

    # Encoding and decoding

    def encode(self, texts: Sequence[str]) -> Ragged:
        """The ids of each text, without special tokens: those that stand in a text are encoded as what they are."""
        rows = [np.array(one.ids, np.int32) for one in _encodings(self._tokenizer.encode_batch_fast, texts)]
        return Ragged.from_rows(rows)

    def encode_with_offsets(self, texts: Sequence[str]) -> tuple[Ragged, Ragged]:
        """`encode`, and for each token the place in its text (in characters) where it begins."""
        rows, starts = [], []
        for one in _encodings(self._tokenizer.encode_batch, texts):
            rows.append(np.array(one.ids, np.int32))
            starts.append(np.array([start for start, _ in one.offsets], np.int32))
        return Ragged.from_rows(rows), Ragged.from_rows(starts)

    def decode(self, ids: Sequence[int] | IntArray, *, special: bool = False) -> str:
        """The text of any ids; what is no UTF-8 becomes U+FFFD. Special tokens are left out unless `special`."""
        stream = self.stream(special=special)
        return stream.push(np.asarray(ids).tolist()) + stream.finish()

    def stream(self, after: Sequence[int] = (), *, special: bool = False) -> TextStream:
        """Decoding token by token; `after`: the ids of the prompt that it goes on from."""
        return TextStream(self.bytes, after, special=special)

    def describe(self, texts: Sequence[str]) -> Density:
        """How well the tokens fit these texts."""
        counts = (len(text.encode("utf-8")) for text in texts)
        return Density(sum(map(len, texts)), sum(counts), len(self.encode(texts).values))

    # Saving

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what `transformers.AutoTokenizer` reads too, and give the state (JSON) for `load`."""
        write_text(folder / TOKENIZER, self._tokenizer.to_str(pretty=True))
        write_json(folder / SETTINGS, self.settings)
        return {"version": _VERSION, "eos": self.eos, "vocabulary_size": self.vocabulary_size}

    @classmethod
    def load(cls, folder: Path, state: Mapping[str, Any]) -> LanguageTokenizer:
        """What `save` wrote. BundleError where a file or the state is damaged or from a newer FastServe."""
        if state.get("version") != _VERSION:
            raise BundleError(
                f"{folder}: the tokenizer has format {state.get('version')!r} and this FastServe reads {_VERSION}; "
                "upgrade FastServe, or train again"
            )
        try:
            made = cls.read(folder)
        except ConfigError as error:
            raise BundleError(f"{error}. The model folder is damaged; restore it from a copy") from error
        if (made.eos, made.vocabulary_size) != (state.get("eos"), state.get("vocabulary_size")):
            raise BundleError(
                f"{folder}: {TOKENIZER} is not the one that the model was trained with "
                f"({made.vocabulary_size:,} ids, expected {state.get('vocabulary_size')}); restore it from a copy"
            )
        return made


def _own_settings() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} has no {TOKENIZER}. A folder with only vocab.json or tokenizer.model is turned into one by "
            "transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ) from None
    except Exception as error:  # `tokenizers` raises bare Exception
        raise ConfigError(
            f"{path} cannot be read as a tokenizer: {error}; expected the {TOKENIZER} of a Hugging Face model"
        ) from error


def _encodings(encode: Callable[..., list[Encoding]], texts: Sequence[str]) -> Iterator[Encoding]:
    """What the library's threads make of each text, a block of texts at a time: its answers are large."""
    try:
        for part in blocks(texts, _BLOCK_CHARACTERS):
            yield from encode(list(part), add_special_tokens=False)
    except TypeError:
        raise DataError(_not_a_text(texts)) from None


def _not_a_text(texts: Sequence[Any]) -> str:
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            return f"text {place} is a {type(text).__name__}; expected a string"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"text {place} holds half a character (a surrogate, at {error.start}), which UTF-8 cannot write"
    return "a text cannot be encoded"
