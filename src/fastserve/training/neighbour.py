"""Workers beside a measurement: processors that compute next to each other share caches and memory, and are slower.

`python -m fastserve.training.neighbour FOLDER` makes steps of the configuration on its standard input, on one thread,
until that is closed. FOLDER is of a run whose data is prepared.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from fastserve.config import Config
from fastserve.errors import TrainingError

SECONDS = 120.0
"""Until each has made its first step."""
READY = "ready"


@contextlib.contextmanager
def neighbours(config: Config, folder: Path, count: int) -> Iterator[None]:
    """While `count` others make steps as well. TrainingError where they do not come up."""
    with contextlib.ExitStack() as ending:
        others = []
        for _ in range(count):
            others.append(_start(config, folder))
            ending.callback(_end, others[-1])
        for process in others:
            _wait_for(process)
        yield


def _start(config: Config, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastserve.training.neighbour", str(folder)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    if process.stdin is not None:
        process.stdin.write(config.model_dump_json() + "\n")
        process.stdin.flush()
    return process


def _wait_for(process: subprocess.Popen[str]) -> None:
    if process.stdout is None:
        raise ValueError("the process has no pipe")
    came, _, _ = select.select([process.stdout], [], [], SECONDS)
    if not came:
        raise TrainingError(f"a process beside the measurement made no step within {SECONDS:.0f} s")
    if process.stdout.readline().strip() != READY:
        _, said = process.communicate()
        raise TrainingError(f"a process beside the measurement failed: {' '.join(said.strip().splitlines()[-1:])}")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def main(folder: Path) -> None:
    """Make steps until nobody wants them any more."""
    import torch

    from fastserve.distributed.world import ALONE
    from fastserve.training import course
    from fastserve.training.calibrate import CROWDED, typical_batches
    from fastserve.training.runs import RunFolder

    torch.set_num_threads(1)
    config = Config.model_validate_json(sys.stdin.readline())
    run = course.pick(config.task).start(config, RunFolder(folder), ALONE)
    threading.Thread(target=_end_with_input, daemon=True).start()
    for number, rows in enumerate(itertools.cycle(typical_batches(run))):
        run.step(run.train.batch(rows[::CROWDED]))
        if number == 0:
            print(READY, flush=True)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
