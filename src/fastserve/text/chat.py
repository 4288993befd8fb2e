"""Conversations as text: chat templates, and which tokens of a conversation the assistant says."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import jinja2
import numpy as np

from fastserve.errors import ConfigError, DataError
from fastserve.text.sandbox import START, STOP, Budget, Declined, Environment
from fastserve.types import Conversation, FloatArray, IntArray, Message

USER, ASSISTANT = "user", "assistant"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For tokenizers trained here, in words that every runtime knows; a system prompt is a first message of that role."""

PLAIN_CHAT = (
    "{% for message in messages %}"
    "{{ message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)
"""For tokenizers without ChatML's tokens and without a template: the token that ends a text ends a message too."""

GUARD = "\ufdd2"
"""Put into what looks like a special token in a message, so that it stays text; no text has this character."""
_STRANGE = str.maketrans(dict.fromkeys((START, STOP, GUARD), "\N{REPLACEMENT CHARACTER}"))
_MEND = "Put {% generation %} and {% endgeneration %} around what it says in the template"
_LONGEST_SOURCE = 200_000
_SECONDS = 10.0
_STEPS, _STEPS_EACH = 100_000, 1_000  # that a rendering may take: at least, and for each message
_CHARACTERS, _CHARACTERS_EACH = 1_000_000, 200  # that it may make: at least, and for each that it is given


class ChatEncoder(Protocol):
    """The tokenizer, as far as chats need it."""

    @property
    def special(self) -> Mapping[str, int]:
        """Special tokens and their ids."""
        ...

    def encode_parts(self, parts: Sequence[str]) -> tuple[IntArray, IntArray]:
        """One text given in parts: its ids, and in which part each token begins.

        Special tokens are special here, except where GUARD stands within one.
        """
        ...


class ChatTemplate:
    """A Jinja template of the kind that Hugging Face models bring, rendered without trust in it.

    source: the template; variables: further names it may use, such as bos_token; where: for messages.
    """

    def __init__(
        self, source: str, variables: Mapping[str, Any] | None = None, *, where: str = "the chat template"
    ) -> None:
        self.source = source
        self.variables = dict(variables or {})
        self.where = where

    @cached_property
    def _environment(self) -> Environment:
        return Environment()

    @cached_property
    def _template(self) -> jinja2.Template:
        if len(self.source) > _LONGEST_SOURCE:
            raise ConfigError(f"{self.where} has {len(self.source):,} characters; at most {_LONGEST_SOURCE:,} are read")
        try:
            return self._environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{self.where}, line {error.lineno}: {error.message}") from None
        except Exception as error:  # Jinja and Python raise many kinds for sources that are meant to break them
            raise ConfigError(f"{self.where} cannot be compiled: {error or type(error).__name__}") from None

    def check(self) -> None:
        """ConfigError where the template cannot be compiled, or does not render a question and its answer."""
        answer = "a7f3"
        said = self.render([Message(USER, "q"), Message(ASSISTANT, answer)])
        if answer not in said:
            raise ConfigError(
                f"{self.where} leaves out what the assistant says: it gave {said[:200]!r}; expected a template that "
                "writes role and content of each of `messages`"
            )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as text; `add_generation_prompt`: with the beginning of the assistant's next message.

        DataError where the template declines the conversation; ConfigError where the template is at fault.
        """
        return self._render(messages, add_generation_prompt)

    def _render(self, messages: Sequence[Message], prompt: bool = False, *, marks: bool = False) -> str:
        said = [{"role": message.role, "content": message.content} for message in messages]
        return self._rendered(said, {"add_generation_prompt": prompt}, marks=marks)

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], *, marks: bool = False
    ) -> str:
        given = _characters([*messages, variables])
        steps, characters = _STEPS + _STEPS_EACH * len(messages), _CHARACTERS + _CHARACTERS_EACH * given
        budget = Budget(steps, characters, _SECONDS, marks=marks)
        known = {"tools": None, "documents": None, **self.variables, **variables, "messages": list(messages)}
        template = self._template
        try:
            return self._environment.render(template, known, budget)
        except Declined as error:
            raise DataError(f"{self.where} does not take this conversation: {error}") from None
        except RecursionError:
            raise ConfigError(f"{self.where}: a macro calls itself without end") from None
        except Exception as error:  # whatever Python raises where a template misuses a value
            raise ConfigError(f"{self.where}{_line_of(error)}: {error or type(error).__name__}") from None

    @cached_property
    def takes_tools(self) -> bool:
        """Whether it writes which tools there are."""
        return re.search(r"\btools\b", self.source) is not None

    # Tokens

    def encode(self, messages: Sequence[Message], tokenizer: ChatEncoder) -> IntArray:
        """The ids after which the assistant answers. What looks like a special token in a message is text."""
        return tokenizer.encode_parts([self._render(_guarded(messages, tokenizer.special), prompt=True)])[0]

    def encode_request(
        self, messages: Sequence[Mapping[str, Any]], tokenizer: ChatEncoder, variables: Mapping[str, Any]
    ) -> IntArray:
        """`encode` for messages as the OpenAI API has them (with tool calls, say), and for more of the template's
        variables, such as `tools`."""
        special = tokenizer.special
        said = [guarded_parts(message, special) for message in messages]
        rendered = self._rendered(said, {"add_generation_prompt": True, **guarded_parts(variables, special)})
        return tokenizer.encode_parts([rendered])[0]

    def spans(self, conversation: Conversation, tokenizer: ChatEncoder) -> tuple[IntArray, FloatArray]:
        """The ids of a whole conversation, and weights: 1 for what the assistant says and its end token, 0 elsewhere.

        Where the template has no `{% generation %}` block, the assistant's parts are found by rendering the
        conversation up to each of them; ConfigError where it looks different then.
        """
        messages = _guarded(conversation.messages, tokenizer.special)
        parts = self._marked(messages) if self._has_marks else self._prefixes(messages, tokenizer.special)
        ids, part_of = tokenizer.encode_parts([text for text, _ in parts])
        weights = np.array([said for _, said in parts], np.float32)[part_of]
        special = np.fromiter(tokenizer.special.values(), np.int64, len(tokenizer.special))
        for number in np.flatnonzero([said for _, said in parts]):
            ends = np.flatnonzero((part_of == number) & np.isin(ids, special))
            if len(ends):  # blanks behind the end token are the template's
                weights[(part_of == number) & (np.arange(len(ids)) > ends[-1])] = 0
        return ids, weights

    @cached_property
    def _has_marks(self) -> bool:
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.source) is not None

    def _marked(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        parts, said = [], False
        for piece in re.split(f"([{START}{STOP}])", self._render(messages, marks=True)):
            if piece in (START, STOP):
                said = piece == START
            else:
                parts.append((piece, said))
        return parts

    def _prefixes(self, messages: Sequence[Message], special: Iterable[str]) -> list[tuple[str, bool]]:
        parts: list[tuple[str, bool]] = []
        whole, done = self._render(messages), 0
        for place, message in enumerate(messages):
            if message.role == ASSISTANT:
                start = self._start(messages[:place], whole, done)
                stop = self._stop(messages[: place + 1], whole, start, special)
                parts += [(whole[done:start], False), (whole[start:stop], True)]
                done = stop
        return [*parts, (whole[done:], False)]

    def _start(self, messages: Sequence[Message], whole: str, done: int) -> int:
        """Where the answer to these first messages begins in the whole conversation."""
        asked = self._render(messages, prompt=True)
        if not whole.startswith(asked) or len(asked) < done:
            raise ConfigError(
                f"{self.where} writes the first {len(messages)} messages, when the assistant is to answer them, in "
                f"another way than within a conversation ({_difference(asked, whole)}), so that what the assistant "
                f"says cannot be found in it. {_MEND}"
            )
        return len(asked)

    def _stop(self, messages: Sequence[Message], whole: str, start: int, special: Iterable[str]) -> int:
        """Where the last of these first messages ends: as far as they are written alone, or at its end token."""
        said = self._render(messages)
        if whole.startswith(said) and len(said) >= start:
            return len(said)
        content, marks = re.escape(messages[-1].content.strip()), "|".join(map(re.escape, special)) or "(?!)"
        found = re.compile(f"{content}\\s*(?:{marks})").search(whole, start)
        if found is None:
            raise ConfigError(
                f"{self.where} writes message {len(messages)}, of the assistant, in another way when others follow "
                f"({_difference(said, whole)}), and not as it was given. {_MEND}"
            )
        return found.end()

    def ends(self, tokenizer: ChatEncoder) -> int | None:
        """The special token with which the assistant's message ends, if any."""
        ids, weights = self.spans(Conversation((Message(USER, "q"), Message(ASSISTANT, "a"))), tokenizer)
        said = ids[weights > 0]
        return int(said[-1]) if len(said) and said[-1] in tokenizer.special.values() else None


def _guarded(messages: Iterable[Message], special: Iterable[str]) -> list[Message]:
    return [Message(guarded(message.role, special), guarded(message.content, special)) for message in messages]


def guarded(text: str, special: Iterable[str]) -> str:
    """The text with GUARD in whatever reads like a special token."""
    text = text.translate(_STRANGE) if any(mark in text for mark in (START, STOP, GUARD)) else text
    for token in sorted(special, key=len, reverse=True):
        text = text.replace(token, token[:1] + GUARD + token[1:])
    return text


def guarded_parts(value: Any, special: Iterable[str]) -> Any:
    """`guarded` for every text in a JSON value."""
    if isinstance(value, str):
        return guarded(value, special)
    if isinstance(value, Mapping):
        return {guarded(str(key), special): guarded_parts(part, special) for key, part in value.items()}
    return [guarded_parts(part, special) for part in value] if isinstance(value, list | tuple) else value


def _characters(value: Any) -> int:
    """How many characters the texts in a JSON value have."""
    if isinstance(value, Mapping):
        return sum(_characters(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 0


def _difference(text: str, whole: str) -> str:
    place = next((n for n, (a, b) in enumerate(zip(text, whole, strict=False)) if a != b), min(len(text), len(whole)))
    return f"{text[place : place + 40]!r} rather than {whole[place : place + 40]!r}"


def _line_of(error: Exception) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f", line {lines[-1]}" if lines else ""
