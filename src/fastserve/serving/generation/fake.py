"""An engine that costs nothing, for tests of servers and clients without training a model.

A fake writer is a folder with `fake_writer.json`: {"kind": "conversation", "seconds": 0.0, "slots": 4, ...}. What it
writes follows from the prompt and the copy alone. Its queue, its blocks and its tokenizer are counted and used as those
of a real engine, so that nothing in front of it can tell.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastserve.config import Section
from fastserve.errors import BundleError, ConfigError, Overloaded
from fastserve.generation.orders import EngineOptions, EngineStats, Order, Output
from fastserve.generation.sampling import Sampling
from fastserve.generation.writing import Piece, Writing
from fastserve.serving.generation.source import KeptText, WriterText
from fastserve.serving.generation.wire import EngineFacts, EngineOrder, Referred
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.text.writing_pipeline import Kind, WritingPipeline

WRITERS = "fastserve.serving.generation.fake:FakeWriters"
SETTINGS = "fake_writer.json"
CRASH, HANG = "crash!", "hang!"
_BLOCK = 16
_WORDS = ' the moon on my bed and frost 床前明月光 疑是地上霜 🙂 {}[]:,"abcdefghijklmnopqrstuvwxyz'


class FakeWriterSettings(Section):
    """The content of `fake_writer.json`."""

    kind: Kind = "conversation"
    template: str | None = None
    seconds: float = 0.0
    """What a step costs (slept)."""
    slots: int = 4
    longest: int = 4096
    says: str | None = None
    """What it writes, whatever the prompt, before it ends; without it, words without end."""
    shift: int = 0
    """Moves what it writes away from what the plain loop does, as a broken fast path would."""
    load_error: str | None = None
    load_seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> FakeWriterSettings:
        return cls.model_validate_json((folder / SETTINGS).read_text("utf-8"))

    def pipeline(self) -> WritingPipeline:
        """A tokenizer that is the same wherever it is made."""
        tokenizer = LanguageTokenizer.train([_WORDS] * 4, size=300)
        return WritingPipeline(tokenizer.for_chats(self.template), self.kind)


@dataclass(slots=True)
class _Text:
    """One text that is being written."""

    order: Order
    writing: Writing
    copy: int
    words: Sequence[int]

    @property
    def blocks(self) -> int:
        return math.ceil((len(self.order.prompt) + len(self.writing.written)) / _BLOCK)


@dataclass
class FakeEngine:
    """First come first served, `slots` at a time."""

    settings: FakeWriterSettings
    options: EngineOptions
    pipeline: WritingPipeline
    waiting: deque[_Text] = field(default_factory=deque)
    running: list[_Text] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    def add(self, order: Order) -> None:
        if order.grammar is not None and order.grammar.kind == "regex":
            raise ConfigError("structured_outputs: this engine knows no regular expressions")
        waiting = self._waiting_tokens()
        asked = (len(order.prompt) + order.sampling.max_tokens) * order.sampling.n
        if waiting and waiting + asked > self.options.max_waiting_tokens:
            raise Overloaded(f"{waiting} tokens are waiting already", 1.0)
        for copy in range(order.sampling.n):
            writing = self.writing(order.prompt, order.sampling, copy)
            self.waiting.append(_Text(order, writing, copy, self.words(order.prompt, copy)))

    def writing(self, prompt: Sequence[int], sampling: Sampling, copy: int = 0) -> Writing:
        pipeline = self.pipeline
        longest = self.settings.longest
        return Writing(prompt, sampling, copy=copy, eos=pipeline.ends, longest=longest, tokenizer=pipeline.tokenizer)

    def words(self, prompt: Sequence[int], copy: int) -> list[int]:
        """The tokens that are written again and again, or `says` and an end."""
        tokenizer = self.pipeline.tokenizer
        if self.settings.says is not None:
            return [*tokenizer.encode([self.settings.says]).values.tolist(), tokenizer.eos]
        words = tokenizer.encode([_WORDS]).values.tolist()
        start = zlib.crc32(repr((list(prompt), copy)).encode()) % len(words)
        return [*words[start:], *words[:start]]

    def cancel(self, id: str) -> None:
        for texts in (self.waiting, self.running):
            for text in [text for text in texts if text.order.id == id]:
                texts.remove(text)
                self._count("cancelled_total")

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> list[Output]:
        while self.waiting and len(self.running) < self.settings.slots:
            self.running.append(text := self.waiting.popleft())
            self._count("prompt_tokens_total", len(text.order.prompt))
            self._obey(text.order)
        time.sleep(self.settings.seconds)
        outputs = [self._write(text) for text in self.running]
        self.running = [text for text in self.running if text.writing.finish_reason is None]
        self._count("steps_total")
        return outputs

    def _obey(self, order: Order) -> None:
        said = self.pipeline.tokenizer.decode(order.prompt)
        if CRASH in said:
            os._exit(70)
        if HANG in said:
            time.sleep(3600)

    def _write(self, text: _Text) -> Output:
        is_first = not text.writing.written
        piece = take(text.writing, text.words, self.settings.shift)
        self._count("generation_tokens_total")
        top = tuple((piece.id + n, piece.logprob - n) for n in range(text.order.top_logprobs))
        cached = len(text.order.prompt) // _BLOCK * _BLOCK if is_first else 0
        return Output(
            text.order.id, text.copy, piece.id, piece.text, piece.logprob, top, piece.finish_reason, cached=cached
        )

    def _count(self, name: str, amount: int = 1) -> None:
        self.totals[name] = self.totals.get(name, 0) + amount

    def _waiting_tokens(self) -> int:
        return sum(len(text.order.prompt) + text.order.sampling.max_tokens for text in self.waiting)

    def stats(self) -> EngineStats:
        blocks = sum(text.blocks for text in self.running)
        return EngineStats(
            requests_running=len(self.running),
            requests_waiting=len(self.waiting),
            waiting_tokens=self._waiting_tokens(),
            cached_blocks=blocks,
            blocks=1024,
            cache_usage=blocks / 1024,
            levels=(len(self.waiting),),
            **self.totals,
        )


def take(writing: Writing, words: Sequence[int], shift: int = 0) -> Piece:
    """The next token of a text."""
    place = len(writing.written)
    return writing.take(words[(place + shift) % len(words)], -1.0 - place % 3)


@dataclass
class FakeLoaded:
    """A fake engine, and the plain loop beside it."""

    engine: FakeEngine
    facts: EngineFacts

    def refer(self, prompts: Sequence[Sequence[int]], tokens: int, texts: Sequence[str]) -> Referred:
        said = []
        for prompt in prompts:
            writing = self.engine.writing(prompt, Sampling(max_tokens=tokens, temperature=0))
            words, text = self.engine.words(prompt, 0), ""
            while writing.finish_reason is None:
                text += take(writing, words).text
            said.append(text)
        return Referred(said, [True for _ in said], [1.0 for _ in texts])


class FakeWriters:
    """Both sides of fake writers."""

    def text(self, folder: Path) -> WriterText:
        return WriterText(FakeWriterSettings.read(folder).pipeline(), [KeptText("a kept text", 1.0)])

    def load(self, order: EngineOrder) -> FakeLoaded:
        settings = FakeWriterSettings.read(Path(order.folder))
        time.sleep(settings.load_seconds)
        if settings.load_error:
            raise BundleError(settings.load_error)
        pipeline = settings.pipeline()
        facts = EngineFacts(settings.longest, pipeline.tokenizer.vocabulary_size, "float32")
        return FakeLoaded(FakeEngine(settings, order.options, pipeline), facts)
