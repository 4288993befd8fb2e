"""The course of language models: what comes before the loop and after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastserve.config import Config
from fastserve.errors import ConfigError, choices
from fastserve.models import reads
from fastserve.training.course import Work
from fastserve.training.generation.prepare import load, prepare, resolve
from fastserve.training.start import start_of
from fastserve.training.unused import refuse

if TYPE_CHECKING:
    from fastserve.distributed.world import World
    from fastserve.training.loop import TrainingRun
    from fastserve.training.origin import Origin
    from fastserve.training.runs import RunFolder


SEGMENTS = ("auto", "subword", "character")
UNUSED = (
    "data.columns.label",
    "data.columns.separator",
    "data.multi_label",
    "text.clean",
    "text.lowercase",
    "text.user_dictionary",
    "text.min_count",
    "model.embeddings",
    "train.label_smoothing",
    "train.class_weights",
)


class GenerationCourse:
    """Texts, prompts or conversations to a model that writes."""

    def check(self, config: Config) -> None:
        refuse(config, UNUSED)
        if config.text.segment not in SEGMENTS:
            raise ConfigError(
                f"text.segment '{config.text.segment}' cuts words, and a language model writes sub-words: "
                f"{choices(config.text.segment, SEGMENTS)}"
            )
        start = start_of(config)
        if start is None:
            reads(resolve(config), causal=True)
        elif start.manifest.task != config.task:
            raise ConfigError(
                f"model.start '{config.model.start}' is a model for {start.manifest.task}: one that writes goes on "
                f"from one for {config.task}"
            )

    def prepare(self, config: Config, folder: Path, meanwhile: Work) -> None:
        prepare(config, folder, meanwhile)

    def start(self, config: Config, folder: RunFolder, world: World) -> TrainingRun:
        from fastserve.training.generation.setup import Setup

        return Setup(config, load(folder.data)).run(folder.checkpoints, folder.scratch, world)

    def finish(self, run: TrainingRun, folder: RunFolder, origin: Origin) -> None:
        from fastserve.training.generation.finish import finish

        finish(load(folder.data), run, folder, origin)
