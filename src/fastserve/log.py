"""What a person sees while work goes on: progress with rate and time left, and plain lines where no terminal is.

Library code calls `say` and `Progress`; only the command line calls `configure`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

logger = logging.getLogger("fastserve")
logger.addHandler(logging.NullHandler())


def say(message: str) -> None:
    """One line for the user about what happens."""
    logger.info(message)


def warn(message: str) -> None:
    """One line about something that the user will want to change."""
    logger.warning(message)


def configure(*, quiet: bool = False) -> None:
    """Send the lines to standard error (standard output belongs to results)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def speak_into(path: Path) -> None:
    """What this process prints from now on, on both streams, is added to that file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.close(file)


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


class Progress:
    """Counts towards a total: a bar on a terminal, else a plain line every `every_seconds`.

    with Progress("encoding", total=95548, unit="texts") as progress:
        progress.advance(512)
    """

    def __init__(self, doing: str, *, total: float | None, unit: str, every_seconds: float = 10.0) -> None:
        self.doing, self.total, self.unit = doing, total, unit
        self.every_seconds = every_seconds
        self.done = 0.0
        self.note = ""
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        self._start = self._last = time.monotonic()
        if logger.isEnabledFor(logging.INFO) and logger.handlers and sys.stderr.isatty():
            self._bar, self._task = self._make_bar()
        return self

    def _make_bar(self) -> tuple[rich.progress.Progress, rich.progress.TaskID]:
        import rich.console
        import rich.progress as parts

        bar = parts.Progress(
            parts.TextColumn("{task.description}"),
            parts.BarColumn(),
            parts.TaskProgressColumn(),
            parts.TextColumn("{task.fields[rate]}"),
            parts.TextColumn("left"),
            parts.TimeRemainingColumn(),
            parts.TextColumn("{task.fields[note]}"),
            console=rich.console.Console(stderr=True),
            transient=True,
        )
        bar.start()
        return bar, bar.add_task(self.doing, total=self.total, rate="", note="")

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def advance(self, amount: float, note: str = "") -> None:
        """Count `amount` more units; `note` is shown behind the figures (a loss, say)."""
        self.done += amount
        self.note = note or self.note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{self.rate:,.0f} {self.unit}/s", note=self.note)
        elif time.monotonic() - self._last >= self.every_seconds:
            self._last = time.monotonic()
            say(self._line())

    def _line(self) -> str:
        parts = [f"{self.doing}: {self.done:,.0f}"]
        if self.total:
            left = max(self.total - self.done, 0) / max(self.rate, 1e-9)
            parts[0] += f" of {self.total:,.0f} {self.unit} ({self.done / self.total:.0%})"
            parts.append(f"{self.rate:,.0f} {self.unit}/s, {left:,.0f} s left")
        else:
            parts.append(f"{self.rate:,.0f} {self.unit}/s")
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
