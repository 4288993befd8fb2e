"""The seam between a job and what it is a job of: what a task does before the loop and after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from fastserve.config import Config
from fastserve.plugins import COURSES

if TYPE_CHECKING:
    from fastserve.distributed.world import World
    from fastserve.training.loop import TrainingRun
    from fastserve.training.origin import Origin
    from fastserve.training.runs import RunFolder

Work = Callable[[], None]

PREPARED = "prepared.json"
"""The file of prepared data that says what was decided; at `network` is the name of the network it was made for."""


class Course(Protocol):
    """One for each task. Made without arguments, and without importing torch: `start` and what follows may."""

    def check(self, config: Config) -> None:
        """ConfigError or NotFoundError for what is seen to be wrong before any work is done."""
        ...

    def prepare(self, config: Config, folder: Path, meanwhile: Work) -> None:
        """Make the prepared data in `folder`, whole or not at all, where no earlier process left it.

        meanwhile: to be done in a thread while worker processes encode.
        """
        ...

    def start(self, config: Config, folder: RunFolder, world: World) -> TrainingRun:
        """The run on prepared data, before its first step (or before it takes up a checkpoint)."""
        ...

    def finish(self, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
        """Judge the trained network; the leader of the workers writes the bundle."""
        ...


def pick(task: str) -> Course:
    """The course of a task. NotFoundError lists the tasks."""
    return cast(Course, COURSES.load(task)())
