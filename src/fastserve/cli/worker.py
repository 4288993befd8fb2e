"""`fastserve worker`: what `fastserve train` starts in each process of a run on several workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from fastserve import log


@click.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def worker(folder: Path) -> None:
    """Work on the run in FOLDER, as the environment (RANK and the others of torchrun) says."""
    from fastserve.training.runs import RunFolder
    from fastserve.training.workers import run_worker

    run = RunFolder(folder)
    if os.environ.get("RANK") != "0":  # one worker speaks to the user; the lines of the others are kept
        log.speak_into(run.workers / f"rank-{os.environ.get('RANK')}.log")
    code = run_worker(run)
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what torch would do first may wait for workers that are gone
