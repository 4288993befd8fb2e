"""How much faster a network in another form answers than what would answer without it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import numpy as np

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.runtimes.base import Runtime, choose_runtime, usual
from fastserve.bundle.runtimes.torch import TorchRuntime
from fastserve.types import Encoded

SIZES = (1, 16)
"""Texts of a call: a lone request, and a crowd."""
_ALONE = 4  # texts that are timed one by one
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 9, 3, 3.0


def times_as_fast(bundle: Bundle, runtime: str, texts: Sequence[str]) -> float:
    """Seconds of the usual runtime over those of `runtime`, both with one thread on the processor.

    The geometric mean over one text a call and sixteen. Both take turns, so that other work on the machine slows both.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        pair = (_usual_runtime(bundle), choose_runtime(bundle, runtime, threads=1))
        return _ratio(pair, bundle.pipeline.encode([texts[i % len(texts)] for i in range(max(SIZES))]))
    finally:
        torch.set_num_threads(threads)


def _usual_runtime(bundle: Bundle) -> Runtime:
    if usual(bundle) == "torch":
        return TorchRuntime.load(bundle, threads=1, place="cpu")
    return choose_runtime(bundle, usual(bundle), threads=1)


def _ratio(pair: tuple[Runtime, Runtime], encoded: Encoded) -> float:
    seconds = [{size: [_seconds(one, encoded, size)] for size in SIZES} for one in pair]  # the first is not counted
    end = time.perf_counter() + _SECONDS
    for number in range(_ROUNDS):
        if number >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for one, found in zip(pair, seconds, strict=True):
            for size in SIZES:
                found[size].append(_seconds(one, encoded, size))
    before, after = ({size: statistics.median(times[1:]) for size, times in found.items()} for found in seconds)
    return math.prod(before[size] / after[size] for size in SIZES) ** (1 / len(SIZES))


def _seconds(runtime: Runtime, encoded: Encoded, size: int) -> float:
    """Of a few calls with `size` texts each."""
    calls = _ALONE if size == 1 else 1
    parts = [
        {name: ragged.take(np.arange(call * size, (call + 1) * size)) for name, ragged in encoded.items()}
        for call in range(calls)
    ]
    start = time.perf_counter()
    for part in parts:
        runtime.logits(part)
    return time.perf_counter() - start
