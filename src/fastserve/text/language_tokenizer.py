"""The tokenizer of a language model: every text to ids and back, trained here or read from a Hugging Face folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Encoding

from fastserve.errors import BundleError, ConfigError, DataError, choices
from fastserve.files import write_json, write_text
from fastserve.text.chat import CHATML, PLAIN_CHAT, ChatTemplate
from fastserve.text.decoding import TextStream, TokenBytes, token_bytes
from fastserve.text.encoder import blocks
from fastserve.text.sealed import Sealed, seal
from fastserve.text.tokenizer_folder import SETTINGS, TOKENIZER, Description, describe, read_settings, read_source
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
_CHARACTERS = r"[\s\S]"
"""The same, where each character is for itself."""


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

    source: the content of tokenizer.json; settings: that of tokenizer_config.json, by which the tokenizer knows its
    special tokens and its chat template; where: for messages.
    """

    def __init__(self, source: str, settings: Mapping[str, Any], where: str = "the tokenizer") -> None:
        self._source = source
        self.settings = dict(settings)
        self.where = where

    # Making

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        size: int,
        special: Sequence[str] = SPECIAL,
        min_count: int = 2,
        characters: bool = False,
    ) -> LanguageTokenizer:
        """Byte-level BPE with at most `size` ids: every text can be written, and comes back as it was.

        special: at least PAD, END and BEGIN; they get the first ids. min_count: how often a pair must occur to become
        a token. characters: no token spans two of them, so that what counts characters (a verse) is easily learned.
        Memory grows with the distinct words of `texts`; give a fair sample of a large corpus.
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
                pre.Split(tokenizers.Regex(_CHARACTERS if characters else _WORDS), "isolated"),
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
        return cls(tokenizer.to_str(pretty=True), _own_settings(special))

    @classmethod
    def read(cls, path: Path, *, eos: str | None = None) -> LanguageTokenizer:
        """A local Hugging Face tokenizer: its folder, or its tokenizer.json. ConfigError where it is none.

        eos: the token that ends a text, where the folder names none.
        """
        file = path / TOKENIZER if path.is_dir() else path
        source = read_source(file)
        settings = read_settings(file.parent, source)
        if eos is not None:
            settings["eos_token"] = eos
        made = cls(source, settings, str(file.parent))
        made.check()
        return made

    def check(self) -> None:
        """ConfigError where the tokenizer is none, does not say how a text ends, or its template cannot be used."""
        _ = self._sealed, self.eos, self.bos, self.pad, self.bytes
        if self.template is not None:
            self.template.check()

    @cached_property
    def _description(self) -> Description:
        return describe(self._source, self.where)

    @cached_property
    def _sealed(self) -> Sealed:
        return seal(self._description, self.where)

    # What it consists of

    @property
    def special(self) -> dict[str, int]:
        """Every special token and its id."""
        return self._description.special

    @property
    def vocabulary_size(self) -> int:
        """One more than the highest id."""
        return self._description.size

    @cached_property
    def eos(self) -> int:
        """The id that ends a text."""
        return self._description.id_of("eos", self.settings)

    @cached_property
    def bos(self) -> int | None:
        """The id that begins a text, where the tokenizer has one."""
        return self._description.id_of("bos", self.settings) if self.settings.get("bos_token") else None

    @cached_property
    def pad(self) -> int:
        """The id that fills up; the end of a text where the tokenizer has none."""
        return self._description.id_of("pad", self.settings) if self.settings.get("pad_token") else self.eos

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids after which nothing more is said: the end of a text, and that of the assistant's message."""
        turn = self.template.ends(self) if self.template is not None else None
        return frozenset([self.eos] if turn is None else [self.eos, turn])

    @cached_property
    def template(self) -> ChatTemplate | None:
        """How conversations are written, where the tokenizer says so."""
        source = self.settings.get("chat_template")
        if not isinstance(source, str):
            return None
        tokens = {name: value for name, value in self.settings.items() if name.endswith("_token")}
        return ChatTemplate(source, tokens, where=f"the chat template of {self.where}")

    def for_chats(self, source: str | None = None) -> LanguageTokenizer:
        """This tokenizer with a chat template: the given one, its own, or one that its special tokens allow.

        ConfigError where the template is faulty, or ends what the assistant says with nothing that the model could end
        it with.
        """
        allowed = CHATML if {TURN, TURN_END} <= set(self.special) else PLAIN_CHAT
        other = copy.copy(self)
        given = {} if source is None else {"chat_template": source}
        other.settings = {"chat_template": allowed, **self.settings, **given}
        for name in ("template", "ends"):
            other.__dict__.pop(name, None)
        if other.template is None:
            raise ConfigError(f"{self.where}: its chat_template is no text; expected a Jinja template")
        if source is not None:
            other.template.where = "the chat template that was given"
        other.template.check()
        if other.template.ends(other) is None:
            raise ConfigError(
                f"{other.template.where} ends what the assistant says with no special token of the tokenizer, so that "
                "the model could never end an answer. Write {{ eos_token }} behind it, or one of these; "
                f"{choices('', self.special)}"
            )
        return other

    @cached_property
    def bytes(self) -> TokenBytes:
        """What each token stands for."""
        return token_bytes(self._description, self.where)

    # Encoding and decoding

    def encode(self, texts: Sequence[str]) -> Ragged:
        """The ids of each text, without special tokens: those that stand in a text are encoded as what they are."""
        rows = [np.array(one.ids, np.int32) for one in _encodings(self._sealed.tokenizer.encode_batch_fast, texts)]
        return Ragged.from_rows(rows)

    def encode_with_offsets(self, texts: Sequence[str]) -> tuple[Ragged, Ragged]:
        """`encode`, and for each token the place in its text (in characters) where it begins."""
        rows, starts = [], []
        for one in _encodings(self._sealed.tokenizer.encode_batch, texts):
            rows.append(np.array(one.ids, np.int32))
            starts.append(np.array([start for start, _ in one.offsets], np.int32))
        return Ragged.from_rows(rows), Ragged.from_rows(starts)

    def encode_parts(self, parts: Sequence[str]) -> tuple[IntArray, IntArray]:
        """One rendered chat, given in parts: int32 (tokens,) ids, and in which part each token begins.

        Special tokens in it are special, as the template wrote them, unless chat.GUARD stands within.
        """
        written = [self._sealed.open(part) for part in parts]
        try:
            one = self._sealed.tokenizer.encode("".join(written), add_special_tokens=False)  # too short for threads
        except TypeError:
            raise DataError(_not_a_text(written)) from None
        ends = np.cumsum([len(part) for part in written])
        starts = [start for start, _ in one.offsets]
        places = np.minimum(np.searchsorted(ends, starts, side="right"), len(parts) - 1)
        return np.array(one.ids, np.int32), places.astype(np.int32)

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
        write_text(folder / TOKENIZER, self._source)
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


def _own_settings(special: Sequence[str]) -> dict[str, Any]:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    return {**settings, "chat_template": CHATML} if {TURN, TURN_END} <= set(special) else settings


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
