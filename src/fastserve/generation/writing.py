"""One text while it is written: what it has, what of it may be shown, and when it ends. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastserve.errors import ConfigError, DataError
from fastserve.generation.sampling import Row, Sampling
from fastserve.generation.stopping import StopStrings

if TYPE_CHECKING:
    from fastserve.text.language_tokenizer import LanguageTokenizer

FinishReason = Literal["stop", "length"]
"""As OpenAI names them: an end token or a stop string; `max_tokens` or the end of the network's context."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token that was just written.

    prompt: place of its prompt among those given; copy: of `Sampling.n`; logprob: natural logarithm of its probability
    under the network, before any sampling rule; text: what can be shown since the last piece (it lags behind while a
    character is not whole or a stop string may begin; "" without a tokenizer); finish_reason: None but in the last.
    """

    prompt: int
    copy: int
    id: int
    logprob: float
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Written:
    """A whole text. ids and logprobs are one for each token, that which ended it included; text is without it."""

    prompt: int
    copy: int
    ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Written:
        """From all pieces of one text, in order."""
        last = pieces[-1]
        if last.finish_reason is None:
            raise ValueError(f"text {last.copy} of prompt {last.prompt} has not ended yet")
        return cls(
            last.prompt,
            last.copy,
            [piece.id for piece in pieces],
            [piece.logprob for piece in pieces],
            "".join(piece.text for piece in pieces),
            last.finish_reason,
        )


class Writing:
    """A text that grows. ids: of the prompt; longest: most tokens that the network reads, the prompt's included.

    DataError for a prompt that is empty or leaves no room, ConfigError for stop strings without a tokenizer.
    """

    def __init__(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        prompt: int = 0,
        copy: int = 0,
        eos: Collection[int],
        longest: int,
        tokenizer: LanguageTokenizer | None = None,
    ) -> None:
        _check(ids, prompt, longest)
        if sampling.stop and tokenizer is None:
            raise ConfigError("stop strings need a tokenizer: give one, or end texts by their end token alone")
        self.prompt, self.copy, self.eos = prompt, copy, eos
        self.written: list[int] = []
        self.row = Row(sampling, ids, self.written, sampling.draws(copy))
        self.most = min(sampling.max_tokens, longest - len(ids))
        self.finish_reason: FinishReason | None = None
        self._stream = None if tokenizer is None else tokenizer.stream(after=ids)
        self._stops = StopStrings(sampling.stop)

    def take(self, token: int, logprob: float) -> Piece:
        """The text goes on by `token`."""
        self.written.append(token)
        if token in self.eos:
            self.finish_reason = "stop"
            text = self._rest()
        else:
            text = self._show([token])
            if self._stops.found is None and len(self.written) == self.most:
                self.finish_reason = "length"
                text += self._rest()
        if self._stops.found is not None:
            self.finish_reason = "stop"
        return Piece(self.prompt, self.copy, token, logprob, text, self.finish_reason)

    def _show(self, ids: Sequence[int]) -> str:
        return "" if self._stream is None else self._stops.push(self._stream.push(ids))

    def _rest(self) -> str:
        if self._stream is None:
            return ""
        return self._stops.push(self._stream.finish()) + self._stops.finish()


def _check(ids: Sequence[int], prompt: int, longest: int) -> None:
    if not len(ids):
        raise DataError(
            f"prompt {prompt} has no tokens: give at least one, for instance the tokenizer's token for the beginning"
        )
    if len(ids) >= longest:
        raise DataError(
            f"prompt {prompt} has {len(ids):,} tokens, but the network reads at most {longest:,} together with what it "
            f"writes: shorten it to {longest - 1:,} tokens or fewer"
        )
