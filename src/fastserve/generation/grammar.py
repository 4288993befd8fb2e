"""Texts that must look a certain way: a JSON schema, a regular expression, one of several strings.

`llguidance` says which tokens may follow; here it is told the tokenizer and kept within limits.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastserve.errors import ConfigError, MissingExtraError, WorkError
from fastserve.generation.orders import Grammar

if TYPE_CHECKING:
    from fastserve.text.language_tokenizer import LanguageTokenizer

LONGEST = 64 << 10
"""Characters of a grammar."""
MOST_CHOICES = 1_000
LIMITS = {
    "max_items_in_row": 1_000,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
}
"""Of llguidance: steps of work, so that no grammar takes longer than a fraction of a second to read or to follow."""


class Grammars:
    """tokenizer: that writes; vocabulary: size of the logits; eos: ids that end a text."""

    def __init__(self, tokenizer: LanguageTokenizer, vocabulary: int, eos: Collection[int]) -> None:
        self.tokenizer, self.vocabulary, self.eos = tokenizer, vocabulary, sorted(eos)

    def follow(self, grammar: Grammar) -> Follower:
        """Of one text, from its beginning. ConfigError for a grammar that cannot be read or is too large."""
        if not self.eos:
            raise ConfigError("a text with a grammar needs a token that ends it, and this model has none")
        library = _library()
        try:
            source = _source(grammar, library)
            matcher = library.LLMatcher(self._tokens, source, log_level=0, limits=library.LLParserLimits(**LIMITS))
        except (ValueError, TypeError) as error:
            raise ConfigError(_refusal(grammar, str(error))) from None
        if matcher.is_error():
            raise ConfigError(_refusal(grammar, matcher.get_error()))
        return Follower(matcher, self.vocabulary, self.eos)

    @cached_property
    def _tokens(self) -> Any:
        library = _library()
        wrapped = library.TokenizerWrapper(_Described(self.tokenizer, self.eos[0]))
        return library.LLTokenizer(wrapped, n_vocab=self.vocabulary)


class Follower:
    """Where one text stands in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int, eos: list[int]) -> None:
        self._matcher, self.vocabulary, self.eos = matcher, vocabulary, eos

    def allowed(self) -> Tensor:
        """bool (V,): the tokens that may follow. WorkError where the grammar took too much work."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise WorkError(f"the grammar of a text could not be followed: {self._matcher.get_error()}")
        found = torch.from_numpy(np.unpackbits(bits, count=self.vocabulary, bitorder="little").astype(np.bool_))
        found[self.eos] = bool(found[self.eos[0]])
        return found

    def take(self, token: int) -> None:
        """The text goes on by `token`, which was allowed."""
        if token not in self.eos and not self._matcher.consume_token(token):
            raise WorkError(f"the grammar of a text does not allow the token {token}: {self._matcher.get_error()}")


class _Described:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: LanguageTokenizer, eos: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos
        self.bos_token_id = tokenizer.bos
        self.tokens = [part or b"\xff[%d]" % number for number, part in enumerate(tokenizer.bytes.table)]
        self.special_token_ids = sorted(tokenizer.bytes.special)

    def __call__(self, text: str | bytes) -> list[int]:
        whole = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        ids: list[int] = self._tokenizer.encode([whole]).values.tolist()
        return ids


def _source(grammar: Grammar, library: Any) -> str:
    if len(grammar.text) > LONGEST:
        raise ConfigError(f"a grammar of {len(grammar.text):,} characters is too large: expected {LONGEST:,} at most")
    matcher = library.LLMatcher
    if grammar.kind == "json_object":
        found: str = matcher.grammar_from_json_schema('{"type": "object"}')
    elif grammar.kind == "json_schema":
        found = matcher.grammar_from_json_schema(grammar.text)
    elif grammar.kind == "regex":
        found = matcher.grammar_from_regex(grammar.text)
    else:
        found = matcher.grammar_from_lark("start: " + " | ".join(json.dumps(one) for one in _choices(grammar.text)))
    return found


def _choices(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        raise ConfigError("the choices of a text must be a JSON list of strings, at least one and none of them empty")
    if len(found) > MOST_CHOICES:
        raise ConfigError(f"{len(found):,} choices for a text are too many: expected {MOST_CHOICES:,} at most")
    return found


def _refusal(grammar: Grammar, why: str) -> str:
    return f"the {grammar.kind} that a text must follow cannot be used: {why.strip().splitlines()[0][:300]}"


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError("structured output", "grammar") from error
    return llguidance
