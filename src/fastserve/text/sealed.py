"""A tokenizer whose special tokens no text can write, since they bear names that nobody knows.

A tokenizer finds `<|end|>` wherever it stands: in a template's words, where it is a mark, and in a user's words, where
it must not be one. So the special tokens get names with characters drawn at random. What is known to come from a
template has its marks renamed in the same way, and everything else is text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from fastserve.errors import ConfigError
from fastserve.text.chat import GUARD
from fastserve.text.tokenizer_folder import Description


@dataclass(frozen=True)
class Sealed:
    """tokenizer: with the special tokens renamed, and nothing added to a text; names: their new names."""

    tokenizer: tokenizers.Tokenizer
    names: Mapping[str, str]
    pattern: re.Pattern[str]

    def open(self, rendered: str) -> str:
        """A template's text with its special tokens under their new names; those with a GUARD in them stay text."""
        return self.pattern.sub(lambda found: self.names[found[0]], rendered).replace(GUARD, "")


def seal(described: Description, where: str) -> Sealed:
    """The tokenizer of a tokenizer.json. ConfigError where the library cannot read it."""
    key = f"\N{LATIN SMALL LETTER K WITH HOOK}{secrets.token_hex(12)}"
    names = {token: f"<{key}:{number}>" for token, number in described.special.items()}
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_renamed(described.content, names)))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise ConfigError(
            f"{where}: tokenizer.json cannot be read as a tokenizer: {error}; expected that of a Hugging Face model"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Sealed(tokenizer, names, pattern)


def _renamed(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    added = [
        {**token, "content": names.get(token["content"], token["content"]), "normalized": False}
        if token["special"]
        else token
        for token in content.get("added_tokens") or ()
    ]
    return {**content, "added_tokens": added, "model": _renamed_model(content["model"], names), "post_processor": None}


def _renamed_model(model: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = [[names.get(token, token), score] for token, score in vocabulary]
    else:
        vocabulary = {names.get(token, token): number for token, number in vocabulary.items()}
    renamed = {**model, "vocab": vocabulary}
    if model.get("unk_token") in names:
        renamed["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        renamed["merges"] = [pair for pair in model["merges"] if not _makes(pair, names)]
    return renamed


def _makes(pair: str | list[str], names: Mapping[str, str]) -> bool:
    """Whether a merge makes a special token out of text, or needs one."""
    left, _, right = pair.partition(" ") if isinstance(pair, str) else (pair[0], "", pair[1])
    return left + right in names or left in names or right in names
