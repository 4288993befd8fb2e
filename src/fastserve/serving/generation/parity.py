"""The gate that a model which writes passes before it takes traffic.

The texts that its folder keeps must be as probable as evaluation found, and what the engine writes, asked over HTTP,
must be what the plain loop writes, token for token, where both compute in float32.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

from fastserve.serving.deployment import Ask
from fastserve.serving.generation.figures import Alone
from fastserve.serving.generation.source import WriterText
from fastserve.serving.generation.wire import EngineFacts, Referred

MADE_UP = ("a", "床前明月光", "The number of")
_TOKENS = 8
_MOST_PROMPTS, _PROMPT_TOKENS = 3, 24
_NATS = 2e-3
"""How far a text's nats for each token may lie from those of the evaluation, as a share."""
Refer = Callable[[Sequence[Sequence[int]], int, Sequence[str]], Awaitable[Referred]]


class Judged(NamedTuple):
    """What keeps the version from serving, and how fast it is alone."""

    faults: list[str]
    alone: Alone


async def judge(text: WriterText, facts: EngineFacts, refer: Refer, ask: Ask) -> Judged:
    """Ask for each prompt, and compare."""
    kept = text.kept
    prompts = _prompts(text, facts)
    referred = await refer(prompts, _TOKENS, [row.text for row in kept])
    faults = list(_improbable(text, referred))
    alone = Alone(1, 1e-3, 1e-3)
    for number, prompt in enumerate(prompts):
        start = time.monotonic()
        await ask("/v1/completions", _body(prompt, 1, ask.name))
        first = time.monotonic() - start
        status, content = await ask("/v1/completions", _body(prompt, _TOKENS, ask.name))
        whole = time.monotonic() - start - first
        if status != 200:
            faults.append(f"prompt {number + 1}: HTTP {status}: {content['error']['message']}")
            continue
        found, expected = content["choices"][0]["text"], referred.texts[number]
        written = content["usage"]["completion_tokens"]
        is_equal = found == expected if referred.whole[number] else found.startswith(expected)
        if facts.precision == "float32" and not is_equal:
            faults.append(f"prompt {number + 1}: {written} tokens are not those of the plain loop")
        alone = Alone(len(prompt), first, max((whole - first) / max(written - 1, 1), first / 20))
    return Judged(faults, alone)


def _prompts(text: WriterText, facts: EngineFacts) -> list[list[int]]:
    """The beginnings of kept texts, or made-up ones, as far as they leave room."""
    beginnings = [row.text[: max(1, len(row.text) // 2)] for row in text.kept if row.text.strip()]
    room = min(_PROMPT_TOKENS, facts.longest - _TOKENS)
    encoded = [text.pipeline.go_on(one)[:room].tolist() for one in (beginnings or MADE_UP)[:_MOST_PROMPTS]]
    return [ids for ids in encoded if ids]


def _body(prompt: list[int], tokens: int, name: str) -> dict[str, object]:
    return {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0}


def _improbable(text: WriterText, referred: Referred) -> Iterator[str]:
    for number, (row, nats) in enumerate(zip(text.kept, referred.nats, strict=True), start=1):
        if abs(nats - row.nats) > _NATS * max(abs(row.nats), 1.0):
            yield f"kept text {number}: {nats:.4f} nats a token, evaluation gave {row.nats:.4f}"
