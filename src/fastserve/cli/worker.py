"""`fastserve worker`: what `fastserve train` starts in each process of a run on several workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def worker(folder: Path) -> None:
    """Work on the run in FOLDER, as the environment (RANK and the others of torchrun) says."""
    from fastserve.training.runs import RunFolder
    from fastserve.training.workers import run_worker

    run = RunFolder(folder)
    if os.environ.get("RANK") != "0":
        _speak_into(run.workers / f"rank-{os.environ.get('RANK')}.log")
    run_worker(run)


def _speak_into(path: Path) -> None:
    """One worker speaks to the user; the lines of the others are kept in the run's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
