"""What a model that writes counts on the board: the engine's numbers, and how long requests took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastserve.generation.orders import EngineStats
from fastserve.serving import board
from fastserve.serving.board import Row
from fastserve.serving.generation.forms import Answer


@dataclass(frozen=True, slots=True)
class Alone:
    """What a request took that was alone: seconds to the first token after `prompt` tokens, and for each further one.

    Both by the gate before the version took traffic; by these a request's slowdown is told.
    """

    prompt: int
    first: float
    each: float

    def seconds(self, prompt: int, written: int) -> float:
        """What a request would take alone, about."""
        return self.first * max(1.0, prompt / self.prompt) + self.each * max(written - 1, 0)


_EMPTY: dict[str, Any] = dict.fromkeys(("cache_usage", "waiting_tokens", *board.ENGINE_GAUGES), 0) | {"levels": ()}


class Figures:
    """Writes to the row that `row()` gives, which is another one while the version is judged."""

    def __init__(self, row: Callable[[], Row]) -> None:
        self._row = row
        self._told = EngineStats()
        self.alone: Alone | None = None

    # ---- the engine's numbers

    def began(self) -> None:
        self._told = EngineStats()

    def told(self, stats: EngineStats) -> None:
        row = self._row()
        for name in board.ENGINE_COUNTERS:
            row.add(name, getattr(stats, name, 0) - getattr(self._told, name, 0))
        for name in board.ENGINE_GAUGES:
            row[name] = getattr(stats, name, 0)
        row["waiting_tokens"] = stats.waiting_tokens
        row["waiting"] = stats.requests_waiting
        row["cache_usage_millionths"] = round(stats.cache_usage * 1e6)
        for level in range(board.LEVELS):
            row[f"level_{level}"] = stats.levels[level] if level < len(stats.levels) else 0
        self._told = stats

    def restarted(self) -> None:
        """The engine ended and is started again: what it had in hand is gone."""
        row = self._row()
        row.add("engine_restarts")
        row["engine_up"] = 0
        self.told(dataclasses.replace(self._told, **_EMPTY))

    # ---- requests

    def first_token(self, seconds: float) -> None:
        self._row().observe(board.FIRST_TOKEN, seconds)

    def next_token(self, seconds: float) -> None:
        self._row().observe(board.NEXT_TOKEN, seconds)

    def finished(self, answer: Answer, seconds: float) -> None:
        row = self._row()
        row.observe(board.COMPLETION, seconds)
        usage = answer.usage()
        prompt, written = usage["prompt_tokens"], usage["completion_tokens"]
        for choice in answer.choices:
            row.add("finished_length" if choice.finish_reason == "length" else "finished_stop")
        if self.alone is not None:
            longest = max(choice.length for choice in answer.choices)
            row.observe(board.SLOWDOWN, seconds / self.alone.seconds(prompt, min(written, longest)))

    def left(self) -> None:
        self._row().add("cancelled")

    def broke(self) -> None:
        self._row().add("finished_error")
