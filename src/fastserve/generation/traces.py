"""Recorded requests: when each came, how much it asked and how much was written. Files, and a made-up mix. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastserve.data.blocks import RawBlock, excerpt
from fastserve.data.formats import open_reader
from fastserve.data.sources import find_sources
from fastserve.errors import DataError

NEEDED = ("arrival_s", "input_tokens", "output_tokens")
OPTIONAL = ("max_tokens", "priority", "key")
EXPECTED = f"expected the columns {', '.join(NEEDED)} and if you like {', '.join(OPTIONAL)}"
USUAL_MOST = 2048
"""What a request is taken to allow, where the trace does not say."""
_LONGEST_ROW = 1 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """arrival: seconds from the trace's first request. output: tokens that were written, which no policy is told."""

    arrival: float
    prompt: int
    output: int
    max_tokens: int
    priority: int = 0
    key: str = ""


def read_trace(address: str) -> list[Request]:
    """Requests as they arrived, the first at 0. DataError names the file, the row and what was expected."""
    requests: list[Request] = []
    for source in find_sources(address):
        reader = open_reader(source, _LONGEST_ROW, NEEDED)
        missing = [name for name in NEEDED if name not in reader.names]
        if missing:
            raise DataError(
                f"{source.address} has no column {', '.join(missing)}: {EXPECTED}; found {', '.join(reader.names)}"
            )
        for block in reader.blocks((*NEEDED, *OPTIONAL)):
            requests += _requests(block, source.address)
    if not requests:
        raise DataError(f"{address} has no requests: {EXPECTED}, one request a row")
    requests.sort(key=lambda request: request.arrival)
    first = requests[0].arrival
    return [replace(request, arrival=request.arrival - first) for request in requests]


def _requests(block: RawBlock, file: str) -> list[Request]:
    if block.bad:
        raise DataError(f"{file} {block.bad[0]}; {EXPECTED}")
    found = []
    for index, row in enumerate(block.rows.tolist()):

        def number(name: str, kind: Callable[[Any], float], least: float, row: int = row, index: int = index) -> Any:
            return _number(block.columns[name][index], kind, least, f"{file} row {row}, {name}")

        output = number("output_tokens", int, 1)
        has = {name for name in OPTIONAL if block.columns.get(name, [None] * len(block))[index] not in (None, "")}
        found.append(
            Request(
                number("arrival_s", float, 0),
                number("input_tokens", int, 1),
                output,
                max(number("max_tokens", int, 1) if "max_tokens" in has else USUAL_MOST, output),
                number("priority", int, -(1 << 31)) if "priority" in has else 0,
                str(block.columns["key"][index]) if "key" in has else "",
            )
        )
    return found


def _number(cell: Any, kind: Callable[[Any], float], least: float, where: str) -> float:
    try:
        value = kind(cell)
    except (TypeError, ValueError):
        value = float("nan")
    if not least <= value < float("inf"):
        wanted = "a whole number" if kind is int else "a number"
        raise DataError(f"{where}: {excerpt(cell)} is not {wanted} from {least:,.0f} on; {EXPECTED}")
    return value


def scaled(requests: Sequence[Request], seconds: float) -> list[Request]:
    """The same requests, arriving over so many seconds."""
    span = requests[-1].arrival or 1.0
    return [replace(request, arrival=request.arrival * seconds / span) for request in requests]


def heavy_tailed(count: int, *, seed: int = 0, shape: float = 1.3, most: int = 4096) -> list[Request]:
    """Poisson arrivals, a second apart; prompts log-normal about 128 tokens, outputs Pareto from 16 tokens on.

    shape: of the outputs; under 2 their variance has no end but `most`.
    """
    draws = np.random.default_rng(seed)
    arrivals = np.cumsum(draws.exponential(1.0, count))
    prompts = np.clip(draws.lognormal(np.log(128), 1.0, count), 4, most).astype(int)
    outputs = np.clip(16 * (1 + draws.pareto(shape, count)), 1, most).astype(int)
    rows = zip((arrivals - arrivals[0]).tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return [Request(arrival, prompt, output, most) for arrival, prompt, output in rows]
