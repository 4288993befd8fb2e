"""A whole job: a configuration to a bundle that is trained, evaluated and written."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import torch

from fastserve import device, log
from fastserve.bundle.bundle import Bundle
from fastserve.config import Config, TrainConfig
from fastserve.models import find
from fastserve.plugins import TASKS
from fastserve.training.finish import Origin, finish
from fastserve.training.loop import TrainingRun
from fastserve.training.prepare import describe_sources, prepare
from fastserve.training.runs import RunFolder, open_run
from fastserve.training.setup import Setup
from fastserve.training.watchers import EventFile, ProgressLine, TensorBoard, thinned, watch


def train(config: Config) -> Bundle:
    """Prepare the data, train, evaluate, and write the bundle into the run's folder.

    Called again with the same configuration and data after a kill, it goes on where it was.
    """
    clock, started = time.monotonic(), datetime.now(UTC).replace(microsecond=0)
    ready_machine(config.train)
    TASKS.load(config.task)
    check_network(config.model.network)
    sources = describe_sources(config.data)
    with open_run(config, sources) as folder:
        prepared = prepare(config, folder.data)
        run = Setup(config, find(prepared.network), prepared).run(folder.checkpoints, folder.scratch)
        train_watched(run, folder)
        return finish(prepared, run, folder, Origin(config, sources, started, clock))


def ready_machine(config: TrainConfig) -> None:
    """Threads and memory of this process, as training wants them."""
    torch.set_num_threads(device.cores() if config.threads == "auto" else config.threads)
    device.keep_freed_memory()


def check_network(name: str) -> None:
    """A wrong name is said before any work is done."""
    if name != "auto":
        find(name)


def train_watched(run: TrainingRun, folder: RunFolder) -> None:
    """Run the loop with everybody who watches it."""
    settings = run.settings
    events, board = EventFile(folder.path), TensorBoard(folder.path)
    try:
        with log.Progress("training", total=settings.total_steps * settings.recipe.batch, unit="texts") as progress:
            watch(run.events(), [thinned(events, settings), thinned(board, settings), ProgressLine(progress, settings)])
    finally:
        events.close()
        board.close()
