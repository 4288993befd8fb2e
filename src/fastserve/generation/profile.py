"""How long steps of a network take on this machine, measured when an engine starts: what the scheduler weighs by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from fastserve.generation.network import Decodes
from fastserve.generation.runner import Part, Runner
from fastserve.generation.step_cost import StepCost

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 2.0
"""Most that is spent on measuring."""
PROMPT = 64
"""Tokens of the prompt that is measured."""
LONG = 256
"""Tokens of the caches that are measured beside empty ones."""
TIMES = 3
"""How often each is measured; the fastest counts, since others only ever slow a machine down."""


def profile(network: Decodes, slots: int, *, seconds: float = SECONDS) -> StepCost:
    """Steps of up to `slots` texts. What there was no time for is taken to go on as before."""
    end = time.perf_counter() + seconds
    runner = Runner(network, min(slots, BATCHES[-1]))
    sizes = [size for size in BATCHES if size <= slots] or [1]
    decode = _decode(runner, sizes, end)
    prompt = _best(lambda: runner.read([Part(0, 0, [1] * _fitting(PROMPT, network), 1)]), end)
    long = _fitting(LONG, network)
    cached = max(_best(lambda: runner.read([Part(0, long - 1, [1], 1)]), end) - decode[0], 0.0) / long
    swapped = _best(lambda: _swap(runner, long), end) / (2 * long)
    if len(decode) == 1:
        sizes, decode = [1, 2], [decode[0], 2 * decode[0]]
    per_prompt_token = max(prompt - decode[0], 1e-9) / max(_fitting(PROMPT, network) - 1, 1)
    return StepCost(tuple(sizes[: len(decode)]), tuple(decode), per_prompt_token, cached, swapped, "measured at start")


def _fitting(tokens: int, network: Decodes) -> int:
    return min(tokens, network.longest)


def _decode(runner: Runner, sizes: Sequence[int], end: float) -> list[float]:
    """Seconds of a step of each size, never falling."""
    found: list[float] = []
    for size in sizes:
        if len(found) >= 2 and time.perf_counter() + 2 * found[-1] > end:
            break
        read = partial(runner.read, [Part(slot, 0, [1], 1) for slot in range(size)])
        found.append(max([_best(read, end), *found]))
    return found


def _best(call: Callable[[], object], end: float) -> float:
    """Seconds of the fastest of a few calls after a first; of the first where there is no time."""
    taken = []
    for _ in range(TIMES + 1):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
        if time.perf_counter() > end:
            break
    return min(taken)


@torch.inference_mode()
def _swap(runner: Runner, tokens: int) -> None:
    runner.cache.swap_in(0, runner.cache.swap_out(0, tokens))
