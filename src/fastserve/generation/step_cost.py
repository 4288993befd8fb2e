"""How long a step takes, by a profile of the machine: batch sizes, swaps and policies depend on it. No torch."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.errors import ConfigError

_KEYS = ("batches", "seconds", "prompt_token", "cached_token", "swapped_token")
_MORE = ("prompt_pair", "prompt_start")
"""That a profile need not have."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """A profile. seconds[i]: of a step in which batches[i] jobs decode with an empty cache, rising, at least two sizes.

    prompt_token: seconds for each token that is read beyond; cached_token: for each token of the caches that are
    attended to; swapped_token: to bring a token's cache to host memory, or back; prompt_pair: for each token that one
    of a prompt attends to, by which a long prompt takes longer than several short ones; prompt_start: for each prompt
    of a step, whatever is read of it.
    """

    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    prompt_token: float
    cached_token: float
    swapped_token: float
    origin: str = ""
    prompt_pair: float = 0.0
    prompt_start: float = 0.0

    def __post_init__(self) -> None:
        if len(self.batches) < 2 or len(self.batches) != len(self.seconds):
            raise ConfigError("a profile needs seconds for each of its batches, and at least two of them")
        if list(self.batches) != sorted(set(self.batches)) or list(self.seconds) != sorted(self.seconds):
            raise ConfigError("batches and seconds of a profile must rise")
        if self.batches[0] < 1 or min(self.seconds[0], self.prompt_token) <= 0:
            raise ConfigError("batches, seconds and prompt_token of a profile must be above 0")
        if min(getattr(self, name) for name in (*_KEYS[3:], *_MORE)) < 0:
            raise ConfigError(f"{', '.join((*_KEYS[3:], *_MORE))} of a profile must not be negative")

    def decode(self, jobs: int) -> float:
        """Seconds of a step in which so many jobs decode, their caches aside; linear between batches."""
        batches, seconds = self.batches, self.seconds
        if jobs < batches[0]:
            return seconds[0]
        after = min(bisect_right(batches, jobs), len(batches) - 1)
        low, high = batches[after - 1], batches[after]
        slope = (seconds[after] - seconds[after - 1]) / (high - low)
        return seconds[after - 1] + (jobs - low) * slope

    def step(self, decode: int, prompt: int, cached: int, pairs: int = 0, prompts: int = 0) -> float:
        """Seconds of a step, by its numbers (`Step`)."""
        read = prompt * self.prompt_token + pairs * self.prompt_pair + prompts * self.prompt_start
        return self.decode(decode) + read + cached * self.cached_token

    def read(self, tokens: int, start: int = 0) -> float:
        """Seconds that reading so many tokens of a prompt, after its first `start`, adds to a step."""
        begun = self.prompt_start if tokens > 1 else 0.0
        return begun + tokens * self.prompt_token + pairs(tokens, start) * self.prompt_pair

    def share(self, batch: int, cached: float = 0.0) -> float:
        """Seconds of the machine that a token of one among `batch` jobs takes; cached: tokens of its own cache."""
        return self.decode(batch) / batch + cached * self.cached_token

    def swap(self, tokens: int) -> float:
        """Seconds to swap a cache of so many tokens out and in again."""
        return 2 * tokens * self.swapped_token

    def best_batch(self, most: int, *, prompt: float = 0.0, cached: float = 0.0, loss: float = 0.02) -> int:
        """The smallest batch that does all but `loss` of the most work a second.

        prompt: tokens that are read for each one that is written; cached: tokens of a job's cache. Fewer jobs at once
        write faster each, so that more than this serves nobody; and the more of the time goes into prompts, the less
        a smaller batch costs.
        """
        reading = prompt * self.prompt_token
        spent = [reading + self.share(batch, cached) for batch in range(1, most + 1)]
        least = min(spent)
        return next(batch for batch, seconds in enumerate(spent, 1) if seconds * (1 - loss) <= least)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*_KEYS, *_MORE, "origin")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "the profile") -> StepCost:
        """ConfigError names what is missing or wrong."""
        missing = [name for name in _KEYS if name not in value]
        if missing:
            raise ConfigError(f"{where} has no {', '.join(missing)}: expected the keys {', '.join(_KEYS)}")
        try:
            return cls(
                tuple(int(size) for size in value["batches"]),
                tuple(float(size) for size in value["seconds"]),
                float(value["prompt_token"]),
                float(value["cached_token"]),
                float(value["swapped_token"]),
                str(value.get("origin", "")),
                *(float(value.get(name, 0.0)) for name in _MORE),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where} is not a profile: {error}; expected numbers") from None

    @classmethod
    def read_file(cls, path: Path) -> StepCost:
        """A profile that was written as JSON."""
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"profile {path} cannot be read as JSON: {error}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"profile {path}: expected an object, found {type(value).__name__}")
        return cls.from_json(value, f"profile {path}")


def pairs(tokens: int, start: int = 0) -> int:
    """How many tokens, themselves included, so many tokens after the first `start` of a text attend to."""
    return tokens * start + tokens * (tokens + 1) // 2


SMALL_DECODER = StepCost(
    batches=(1, 8, 32, 64),
    seconds=(0.0122, 0.0200, 0.0463, 0.0810),
    prompt_token=1 / 1774,
    cached_token=1.0e-6,
    swapped_token=4.0e-6,
    origin="decoder of 125 M parameters, int8, two cores",
)
"""Measured on a CPU: 82, 400 and 691 tokens/s at 1, 8 and 32 jobs; the last batch goes on with the same slope."""
