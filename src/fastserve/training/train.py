"""From prepared data to a bundle that is trained, evaluated and written."""

from __future__ import annotations

import torch

from fastserve import device, log
from fastserve.config import TrainConfig
from fastserve.distributed.pulse import FINISH
from fastserve.distributed.world import World
from fastserve.training import course
from fastserve.training.figures import WorkerFigures, compare
from fastserve.training.loop import TrainingRun
from fastserve.training.origin import Origin
from fastserve.training.runs import RunFolder
from fastserve.training.watchers import EventFile, ProgressLine, TensorBoard, Watcher, thinned, watch


def work(origin: Origin, folder: RunFolder, world: World) -> None:
    """What one worker does of a run whose data is prepared, to the bundle."""
    ready_machine(origin.config.train, world.local_size)
    task = course.pick(origin.config.task)
    run = task.start(origin.config, folder, world)
    train_watched(run, folder)
    world.pulse.turn_to(FINISH)
    task.finish(run, folder, origin)


def ready_machine(config: TrainConfig, workers: int = 1) -> None:
    """Threads and memory of this process, one of so many on the machine, as training wants them."""
    torch.set_num_threads(max(1, device.cores() // workers) if config.threads == "auto" else config.threads)
    device.keep_freed_memory()


def train_watched(run: TrainingRun, folder: RunFolder) -> None:
    """Run the loop with everybody who watches it."""
    settings = run.settings
    figures = WorkerFigures(run.world, folder.workers, apart=run.strategy.tells_apart)
    watchers: list[Watcher] = [] if run.world.alone else [figures]
    if not run.world.leads:
        watch(run.events(), watchers)
        compare(run.world, figures)
        return
    texts = len(run.train) * settings.total_steps / settings.steps_per_epoch
    events, board = EventFile(folder.path), TensorBoard(folder.path)
    try:
        with log.Progress("training", total=texts, unit="texts") as progress:
            watchers += [thinned(events, settings), thinned(board, settings), ProgressLine(progress, settings)]
            watch(run.events(), watchers)
        if not run.world.alone:
            log.say(compare(run.world, figures))
    finally:
        events.close()
        board.close()
