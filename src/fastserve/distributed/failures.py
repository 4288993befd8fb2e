"""Exceptions that workers leave in the run's folder, and which of them is the cause of the others."""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from fastserve import files
from fastserve.distributed.pulse import Pulse

REPEATS = 3
"""A failure that comes so often in a row, at the same step, will come again."""
LOST_WORDS = ("gloo", "connection", "timed out", "timeout", "broken pipe", "socket", "nccl")


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception that was not expected.

    lost: whether it only says that another worker was lost. traceback: the file that has it.
    """

    rank: int
    step: int
    doing: str
    error: str
    lost: bool
    traceback: str

    def __str__(self) -> str:
        return f"worker {self.rank} failed after step {self.step} ({self.doing}) with {self.error}"

    @property
    def key(self) -> tuple[int, str]:
        return self.step, self.error


def leave(folder: Path, rank: int, pulse: Pulse, error: Exception) -> None:
    """Write down what ended a worker."""
    name = folder / f"{time.time_ns()}-rank-{rank}"
    text = name.with_suffix(".txt")
    first = str(error).strip().partition("\n")[0]
    files.write_text(text, "".join(traceback.format_exception(error)))
    told = f"{type(error).__name__}: {first}" if first else type(error).__name__
    failure = Failure(rank, pulse.step, pulse.doing, told, says_lost(error), str(text))
    files.write_json(name.with_suffix(".json"), asdict(failure))


def says_lost(error: BaseException) -> bool:
    """Whether an exception says no more than that others were not to be reached."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError | ConnectionError | BrokenPipeError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST_WORDS)


class Failures:
    """What the workers leave from one start to the next. folder: shared by all machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: set[Path] = set()
        self._causes: list[Failure | None] = []

    def begin(self) -> None:
        """Workers start: what is there is of the past."""
        self._known = set(self._files())

    def cause(self) -> Failure | None:
        """The first that fell by itself since `begin`; None where nothing but lost connections is told of."""
        found = [Failure(**json.loads(path.read_text("utf-8"))) for path in self._files() if path not in self._known]
        return next((failure for failure in found if not failure.lost), None)

    def remember(self, cause: Failure | None) -> None:
        """A start has failed."""
        self._causes.append(cause)

    @property
    def repeats(self) -> bool:
        """Whether the last starts have all failed alike, at the same step."""
        last = self._causes[-REPEATS:]
        return len(last) == REPEATS and None not in last and len({each.key for each in last if each}) == 1

    def say_given_up(self, restarts: int, lost: str) -> str:
        """The end of a run whose workers are not replaced any more. lost: what was the last that happened."""
        again = "run the same command again to go on from the last checkpoint"
        cause = self.last
        if self.repeats and cause is not None:
            return (
                f"{cause}, {REPEATS} times in a row, and would fail again. Its traceback is in {cause.traceback}; "
                f"mend what it names, then {again}"
            )
        return f"the run is given up after {restarts} restarts: {lost}. More is in {self.folder.parent}; {again}"

    @property
    def last(self) -> Failure | None:
        return self._causes[-1] if self._causes else None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
