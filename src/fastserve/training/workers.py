"""A run on several workers: what the command gives to them, what one of them does, and how they report a failure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fastserve import device, errors, files
from fastserve.config import DistributedConfig
from fastserve.distributed.launch import Launch, launch
from fastserve.distributed.network import Endpoint
from fastserve.distributed.world import World
from fastserve.errors import ConfigError, FastServeError
from fastserve.training.finish import Origin
from fastserve.training.runs import RunFolder

JOB = "job.json"
FAILURE = "failure.json"


def several(settings: DistributedConfig) -> bool:
    """Whether more than one worker is asked for."""
    return workers_here(settings) > 1 or settings.nodes_range[1] > 1


def workers_here(settings: DistributedConfig) -> int:
    """Workers on this machine."""
    if settings.workers != "auto":
        return settings.workers
    return max(1, torch.cuda.device_count())


def train_on_workers(folder: RunFolder, origin: Origin) -> None:
    """Let workers do the prepared run that is in `folder`, until its bundle is there."""
    settings = origin.config.distributed
    files.write_json(folder.path / JOB, origin.to_json())
    (folder.path / FAILURE).unlink(missing_ok=True)
    launch(
        Launch(
            command=(sys.executable, "-m", "fastserve", "worker", str(folder.path)),
            workers=workers_here(settings),
            run_id=folder.path.name,
            logs=folder.workers,
            restarts=settings.restarts,
            nodes=settings.nodes_range,
            rendezvous=_rendezvous(settings),
            hopeless=(folder.path / FAILURE).is_file,
        )
    )
    _raise_failure(folder.path / FAILURE)


def _rendezvous(settings: DistributedConfig) -> Endpoint | None:
    if settings.rendezvous is not None:
        return Endpoint.parse(settings.rendezvous)
    if settings.nodes_range[1] > 1:
        raise ConfigError(
            "several machines need a place to meet: distributed.rendezvous=HOST:PORT, one of the machines"
        )
    return None


def run_worker(path: Path) -> None:
    """What each worker does. A failure that would come again is left in the run's folder for the command to show."""
    from fastserve.training.train import work

    folder = RunFolder(path)
    origin = Origin.from_json(json.loads((path / JOB).read_text("utf-8")))
    place = device.pick_device(origin.config.train.device)
    world = World.join(place, origin.config.distributed.timeout_seconds)
    try:
        work(origin, folder, world)
        world.leave()
    except FastServeError as error:
        _leave_failure(path / FAILURE, error)
        sys.exit(error.exit_code)


def _leave_failure(path: Path, error: FastServeError) -> None:
    files.write_json(path, {"kind": type(error).__name__, "message": str(error)})


def _raise_failure(path: Path) -> None:
    """The error that a worker left, as if it had been raised here."""
    if path.is_file():
        content = json.loads(path.read_text("utf-8"))
        kind: Any = getattr(errors, content["kind"], errors.TrainingError)
        raise kind(content["message"])
