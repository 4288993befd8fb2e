"""Answers in the words of the OpenAI API: whole ones, and the pieces of a stream. No sockets, no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastserve.generation.orders import Output
from fastserve.serving.generation.tools import Call, Reader
from fastserve.text.decoding import TokenBytes

Json = dict[str, Any]


@dataclass(slots=True)
class Choice:
    """One text of an answer. shown: what the client sees of it; calls: tool calls in it; outputs: kept for logprobs."""

    index: int
    reader: Reader | None = None
    shown: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    length: int = 0
    characters: int = 0
    finish_reason: str | None = None

    def take(self, output: Output) -> list[str | Call]:
        """What the token adds."""
        self.length += 1
        if self.reader is None:
            found: list[str | Call] = [output.text] if output.text else []
        else:
            found = self.reader.push(output.text)
            if output.ends:
                found += self.reader.finish()
        self.calls += [part for part in found if isinstance(part, Call)]
        self.finish_reason = "tool_calls" if self.calls and output.finish_reason == "stop" else output.finish_reason
        return found


class Form(Protocol):
    """How one kind of answer is written."""

    kind: str
    piece_kind: str

    def opening(self, choice: Choice) -> Json | None:
        """The first piece of a text in a stream, before any token."""

    def piece(self, choice: Choice, output: Output, found: Sequence[str | Call]) -> Json | None:
        """What a token adds, as a choice of a stream; None where there is nothing to show."""

    def whole(self, choice: Choice) -> Json:
        """A text that is complete, as a choice."""


class TokenWords:
    """Tokens as the API shows them."""

    def __init__(self, tokens: TokenBytes) -> None:
        self.tokens = tokens

    def text(self, token: int) -> str:
        return self.data(token).decode("utf-8", "replace")

    def data(self, token: int) -> bytes:
        return self.tokens.table[token] if 0 <= token < len(self.tokens.table) else b""


class CompletionForm:
    """`/v1/completions`. logprobs: how many alternatives are told with each token; None tells nothing."""

    kind = piece_kind = "text_completion"

    def __init__(self, words: TokenWords, logprobs: int | None) -> None:
        self.words, self.logprobs = words, logprobs

    def opening(self, choice: Choice) -> Json | None:
        return None

    def piece(self, choice: Choice, output: Output, found: Sequence[str | Call]) -> Json | None:
        text = "".join(part for part in found if isinstance(part, str))
        if not text and self.logprobs is None and output.finish_reason is None:
            return None
        return self._choice(choice, text, [output])

    def whole(self, choice: Choice) -> Json:
        return self._choice(choice, "".join(choice.shown), choice.outputs)

    def _choice(self, choice: Choice, text: str, outputs: Sequence[Output]) -> Json:
        told = None if self.logprobs is None else self._logprobs(choice, outputs)
        return {"index": choice.index, "text": text, "logprobs": told, "finish_reason": choice.finish_reason}

    def _logprobs(self, choice: Choice, outputs: Sequence[Output]) -> Json:
        words = [self.words.text(output.token) for output in outputs]
        offsets = []
        for word in words:
            offsets.append(choice.characters)
            choice.characters += len(word)
        return {
            "tokens": words,
            "token_logprobs": [output.logprob for output in outputs],
            "top_logprobs": [self._top(output) for output in outputs] if self.logprobs else None,
            "text_offset": offsets,
        }

    def _top(self, output: Output) -> Json:
        """Alternatives by their text; the chosen one is always among them."""
        told = {self.words.text(token): logprob for token, logprob in reversed(output.top)}
        return {**told, self.words.text(output.token): output.logprob}


class ChatForm:
    """`/v1/chat/completions`. logprobs: whether each token is told."""

    kind, piece_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, words: TokenWords, logprobs: bool) -> None:
        self.words, self.logprobs = words, logprobs

    def opening(self, choice: Choice) -> Json | None:
        return self._piece(choice, {"role": "assistant", "content": ""}, ())

    def piece(self, choice: Choice, output: Output, found: Sequence[str | Call]) -> Json | None:
        delta: Json = {}
        if text := "".join(part for part in found if isinstance(part, str)):
            delta["content"] = text
        calls = [part for part in found if isinstance(part, Call)]
        if calls:
            first = len(choice.calls) - len(calls)
            delta["tool_calls"] = [call.content(first + place) for place, call in enumerate(calls)]
        if not delta and not self.logprobs and output.finish_reason is None:
            return None
        return self._piece(choice, delta, [output])

    def _piece(self, choice: Choice, delta: Json, outputs: Sequence[Output]) -> Json:
        told = self._logprobs(outputs) if self.logprobs and outputs else None
        return {"index": choice.index, "delta": delta, "logprobs": told, "finish_reason": choice.finish_reason}

    def whole(self, choice: Choice) -> Json:
        text = "".join(choice.shown)
        message: Json = {"role": "assistant", "content": text if text or not choice.calls else None, "refusal": None}
        if choice.calls:
            message["tool_calls"] = [call.content() for call in choice.calls]
        told = self._logprobs(choice.outputs) if self.logprobs else None
        return {"index": choice.index, "message": message, "logprobs": told, "finish_reason": choice.finish_reason}

    def _logprobs(self, outputs: Sequence[Output]) -> Json:
        told = [
            {
                **self._token(output.token, output.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in output.top],
            }
            for output in outputs
        ]
        return {"content": told, "refusal": None}

    def _token(self, token: int, logprob: float) -> Json:
        return {"token": self.words.text(token), "logprob": logprob, "bytes": list(self.words.data(token))}


class Answer:
    """One answer while it is written: its texts, and how many tokens it took."""

    def __init__(
        self, form: Form, head: Json, prompt_tokens: int, count: int, new_reader: Callable[[], Reader] | None
    ) -> None:
        self.form, self.head, self.prompt_tokens = form, head, prompt_tokens
        self.choices = [Choice(index, new_reader() if new_reader else None) for index in range(count)]
        self.cached: dict[str, int] = {}

    @property
    def is_whole(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    def take(self, index: int, output: Output, *, keep: bool) -> Json | None:
        """A token of the text at `index`: what a stream says of it. keep: for a whole answer."""
        choice = self.choices[index]
        if not choice.length:
            self.cached.setdefault(output.id, output.cached)
        found = choice.take(output)
        if keep:
            choice.shown += [part for part in found if isinstance(part, str)]
            choice.outputs.append(output)
            return None
        return self.form.piece(choice, output, found)

    def openings(self) -> list[Json]:
        return [piece for choice in self.choices if (piece := self.form.opening(choice)) is not None]

    def chunk(self, choices: Sequence[Json], *, tells_usage: bool = False) -> Json:
        """A message of a stream; with `tells_usage` each says that usage comes later."""
        return {**self.head, "object": self.form.piece_kind, "choices": choices} | (
            {"usage": None} if tells_usage else {}
        )

    def whole(self) -> Json:
        """The answer as one object."""
        choices = [self.form.whole(choice) for choice in self.choices]
        return {**self.head, "object": self.form.kind, "choices": choices, "usage": self.usage()}

    def usage(self) -> Json:
        written = sum(choice.length for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }
