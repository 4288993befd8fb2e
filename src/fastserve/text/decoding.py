"""Token ids back to text: what bytes each token stands for, and text that appears token by token."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.errors import ConfigError, choices
from fastserve.text.tokenizer_folder import Description
from fastserve.types import LongArray

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DECODERS = ("ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip")


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each token, so that any ids whatsoever can be joined to text.

    table: bytes by id, empty where an id is not in use; special: ids that are marks, not text; strips: leading spaces
    that a text loses (SentencePiece writes one in front of the first word).
    """

    table: tuple[bytes, ...]
    special: frozenset[int]
    strips: int = 0

    def join(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """The bytes of the tokens, nothing stripped; of special ones only where `special`. Unknown ids give nothing."""
        table, last = self.table, len(self.table)
        return b"".join(
            [table[number] for number in ids if 0 <= number < last and (special or number not in self.special)]
        )

    def sizes(self) -> LongArray:
        """int64 (ids, 2): characters and bytes that each token stands for; special ones none.

        A character cut into several tokens is counted where its first byte is.
        """
        sizes = np.zeros((len(self.table), 2), np.int64)
        for number, part in enumerate(self.table):
            if number not in self.special:
                sizes[number] = _characters(part), len(part)
        return sizes


def _characters(part: bytes) -> int:
    return int(np.count_nonzero((np.frombuffer(part, np.uint8) & 0xC0) != 0x80))


class TextStream:
    """Text that grows token by token and never shows half a character.

    All pieces together are what `decode` gives for all ids, save that the space which SentencePiece puts in front of
    a text is kept where the stream goes on from other text (`after`: the ids of the prompt).
    """

    def __init__(self, tokens: TokenBytes, after: Sequence[int] = (), *, special: bool = False) -> None:
        self.tokens = tokens
        self.special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before = tokens.join(after)
        self._decoder.decode(before[_whole(before) :])
        self._strips = 0 if before else tokens.strips

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete; "" while a character is not whole."""
        return self._stripped(self._decoder.decode(self.tokens.join(ids, special=self.special)))

    def finish(self) -> str:
        """What is left of a character that never became whole, as U+FFFD."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while text and self._strips:
            if text[0] != " ":
                self._strips = 0
                break
            text, self._strips = text[1:], self._strips - 1
        return text


def _whole(data: bytes) -> int:
    """Where a character begins at the end of `data` that may not be whole."""
    for place in range(len(data) - 1, max(len(data) - 4, -1), -1):
        if data[place] & 0xC0 != 0x80:
            return place
    return len(data)


def token_bytes(described: Description, where: str) -> TokenBytes:
    """What the tokens of a tokenizer.json stand for, read from its decoder. ConfigError for one of another kind."""
    steps = _steps(described.content.get("decoder"), where)
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    special = frozenset(described.special.values())
    table = [b""] * described.size
    for token, number in described.vocabulary.items():
        if number in special or (number in described.added and byte_level):
            table[number] = token.encode("utf-8")
        else:
            table[number] = _from_byte_level(token) if byte_level else _from_pieces(token, steps)
    return TokenBytes(tuple(table), special, _strips(steps))


def _steps(decoder: Mapping[str, Any] | None, where: str) -> list[Mapping[str, Any]]:
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    for step in steps:
        if step["type"] not in _DECODERS or (step["type"] == "Replace" and "String" not in step["pattern"]):
            raise ConfigError(
                f"{where}: its decoder has a step '{step['type']}', which is not known here; language models write "
                f"with byte-level or SentencePiece tokens: {choices(step['type'], _DECODERS)}"
            )
    if not steps:
        raise ConfigError(f"{where} has no decoder, so its ids cannot be written as text; expected ByteLevel, say")
    return list(steps)


def _strips(steps: Sequence[Mapping[str, Any]]) -> int:
    for step in steps:
        if step["type"] == "Strip" and step["content"] == " ":
            return int(step["start"])
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return 1
    return 0


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


def _from_pieces(token: str, steps: Sequence[Mapping[str, Any]]) -> bytes:
    """A token of SentencePiece: a byte such as `<0xE4>`, or text in which spaces are written as U+2581."""
    for step in steps:
        if step["type"] == "ByteFallback" and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        if step["type"] == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
        elif step["type"] == "Metaspace":
            token = token.replace(step.get("replacement", _BLANK), " ")
    return token.encode("utf-8")


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level tokens (from GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
