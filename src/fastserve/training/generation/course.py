"""The course of language models: what comes before the loop and after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.config import Config
from fastserve.models import reads
from fastserve.training.course import Work
from fastserve.training.generation.prepare import load, prepare, resolve
from fastserve.training.start import start_of

if TYPE_CHECKING:
    from fastserve.distributed.world import World
    from fastserve.training.loop import TrainingRun
    from fastserve.training.origin import Origin
    from fastserve.training.runs import RunFolder


class GenerationCourse:
    """Texts, prompts or conversations to a model that writes."""

    def check(self, config: Config) -> None:
        if start_of(config) is None:
            reads(resolve(config), causal=True)

    def prepare(self, config: Config, folder: Path, meanwhile: Work) -> None:
        prepare(config, folder, meanwhile)

    def start(self, config: Config, folder: RunFolder, world: World) -> TrainingRun:
        from fastserve.training.generation.setup import Setup

        return Setup(config, load(folder.data)).run(folder.checkpoints, folder.scratch, world)

    def finish(self, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
        from fastserve.training.generation.finish import finish

        finish(load(folder.data), run, folder, origin)
