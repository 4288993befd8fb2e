"""A whole job: a configuration to a bundle that is trained, evaluated and written.

No torch is imported here: its import takes as long as encoding many texts, and happens while worker processes do that.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from fastserve.bundle.bundle import Bundle
from fastserve.bundle.format import DataSource
from fastserve.config import Config
from fastserve.distributed import launcher
from fastserve.training import course
from fastserve.training.origin import Origin, describe_sources
from fastserve.training.runs import RunFolder, open_run


def train(config: Config) -> Bundle:
    """Prepare the data, train, evaluate, and write the bundle into the run's folder.

    Called again with the same configuration and data after a kill, it goes on where it was.
    """
    started = datetime.now(UTC)
    task = course.pick(config.task)
    task.check(config)
    if config.distributed.run_on != "local":
        launcher.pick(config.distributed)
    sources = describe_sources(config.data)
    with open_run(config, sources) as folder:
        with folder.preparing():
            task.prepare(config, folder.data, _import_training)
        _train(config, sources, started, folder)
        return Bundle.load(folder.bundle)


def _train(config: Config, sources: Sequence[DataSource], started: datetime, folder: RunFolder) -> None:
    from fastserve.distributed.world import ALONE
    from fastserve.training.train import work
    from fastserve.training.workers import several, train_on_workers

    origin = Origin(config, sources, started)
    if several(config.distributed):
        train_on_workers(folder, origin)
    else:
        work(origin, folder, ALONE)


def _import_training() -> None:
    with contextlib.suppress(ImportError), _uncollected():  # an error comes again where the import is needed
        import fastserve.training.train  # noqa: F401


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """An import makes many objects that stay: looking through them for cycles again and again takes a tenth of it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
