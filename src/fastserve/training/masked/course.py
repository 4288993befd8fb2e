"""The course of masked-language pretraining: what comes before the loop and after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.config import Config
from fastserve.errors import ConfigError
from fastserve.training.course import Work
from fastserve.training.masked.prepare import NETWORK, load, prepare, resolve

if TYPE_CHECKING:
    from fastserve.distributed.world import World
    from fastserve.training.loop import TrainingRun
    from fastserve.training.origin import Origin
    from fastserve.training.runs import RunFolder


class MaskedCourse:
    """Texts to an encoder that knows their language."""

    def check(self, config: Config) -> None:
        if config.model.start is not None or config.model.embeddings is not None:
            raise ConfigError("task masked begins with random weights: leave model.start and model.embeddings out")
        if resolve(config) != NETWORK:
            from fastserve.models.masked import masked_form

            masked_form(resolve(config))

    def prepare(self, config: Config, folder: Path, meanwhile: Work) -> None:
        prepare(config, folder, meanwhile)

    def start(self, config: Config, folder: RunFolder, world: World) -> TrainingRun:
        from fastserve.training.masked.setup import Setup

        return Setup(config, load(folder.data)).run(folder.checkpoints, world)

    def finish(self, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
        from fastserve.training.masked.finish import finish

        finish(load(folder.data), run, folder, origin)
