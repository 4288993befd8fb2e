"""The course of classification: what comes before the loop and after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.config import Config
from fastserve.models import reads
from fastserve.training.course import Work
from fastserve.training.start import start_of
from fastserve.training.unused import refuse

if TYPE_CHECKING:
    from fastserve.distributed.world import World
    from fastserve.training.loop import TrainingRun
    from fastserve.training.origin import Origin
    from fastserve.training.runs import RunFolder


UNUSED = (
    *(f"data.columns.{name}" for name in ("prompt", "completion", "messages", "chosen", "rejected")),
    "data.documents",
    "text.chat_template",
    "model.lora",
    "model.merge",
    "train.beta",
    "train.chosen_weight",
)


class ClassificationCourse:
    """Texts with labels to a classifier."""

    def check(self, config: Config) -> None:
        refuse(config, UNUSED)
        start = start_of(config)
        if start is not None:
            from fastserve.training.classification.start import check_start

            check_start(config, start)
        elif config.model.network != "auto":
            reads(config.model.network)

    def prepare(self, config: Config, folder: Path, meanwhile: Work) -> None:
        from fastserve.training.classification.prepare import prepare

        prepare(config, folder, meanwhile)

    def start(self, config: Config, folder: RunFolder, world: World) -> TrainingRun:
        from fastserve.training.classification.prepare import load
        from fastserve.training.classification.setup import Setup

        return Setup(config, load(folder.data)).run(folder.checkpoints, folder.scratch, world)

    def finish(self, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
        from fastserve.training.classification.finish import finish
        from fastserve.training.classification.prepare import load

        finish(load(folder.data), run, folder, origin)
