"""A run on several workers: what the command gives to them, what one of them does, and how they report a failure."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastserve import device, errors, files
from fastserve.config import DistributedConfig, home
from fastserve.distributed import failures, launcher
from fastserve.distributed.launch import PARENT
from fastserve.distributed.launcher import Launch
from fastserve.distributed.network import Endpoint
from fastserve.distributed.pulse import Heartbeat, Pulse, stack_file
from fastserve.distributed.world import World
from fastserve.errors import ConfigError, FastServeError, StorageError, TrainingError
from fastserve.training.origin import Origin
from fastserve.training.runs import FAILURE, JOB, RunFolder

SHARED_SECONDS = 10.0
"""How long a file may take to be seen from another machine."""
PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal that a process gets when its parent ends."""


def several(settings: DistributedConfig) -> bool:
    """Whether more than one worker is asked for, or one that is elsewhere."""
    return settings.run_on != "local" or workers_here(settings) > 1 or settings.nodes_range[1] > 1


def workers_here(settings: DistributedConfig) -> int:
    """Workers on this machine."""
    if settings.workers != "auto":
        return settings.workers
    return max(1, torch.cuda.device_count())


def train_on_workers(folder: RunFolder, origin: Origin) -> None:
    """Let workers do the prepared run that is in `folder`, until its bundle is there.

    With several machines, each does so with the same folder, and all end alike.
    """
    settings = origin.config.distributed
    job, failure = folder.path / JOB, folder.path / FAILURE
    with files.lock(folder.path / ".job"):
        if not job.exists():
            files.write_json(job, origin.to_json())
    plan = Launch(
        command=(sys.executable, "-m", "fastserve", "worker", str(folder.path)),
        work=functools.partial(run_worker, folder),
        workers=None if settings.workers == "auto" else settings.workers,
        accelerated=origin.config.train.device != "cpu",
        run_id=folder.path.name.partition("-")[0],  # machines whose homes are not the same meet too, and are told so
        logs=folder.workers,
        restarts=settings.restarts,
        stall_seconds=min(settings.stall_seconds, settings.timeout_seconds / 2),
        timeout_seconds=settings.timeout_seconds,
        nodes=settings.nodes_range,
        rendezvous=_rendezvous(settings),
        hopeless=failure.is_file,
        done=lambda: folder.finished,
        give_up=functools.partial(_leave_failure, failure),
    )
    try:
        launcher.pick(settings).launch(plan)
    except (TrainingError, StorageError) as error:
        if plan.rendezvous:
            _leave_failure(failure, error)  # for the other machines
        raise
    _raise_failure(failure)


def _rendezvous(settings: DistributedConfig) -> list[Endpoint]:
    if not settings.meets:
        return []
    if settings.rendezvous is None:
        raise ConfigError(
            "several machines need a place to meet: distributed.rendezvous=HOST:PORT, one of the machines"
        )
    return Endpoint.parse_all(settings.rendezvous)


def run_worker(folder: RunFolder) -> int:
    """What each worker does; the exit code. The environment says which of them it is (the variables of torchrun).

    A failure that would come again is left in the run's folder for the command to show.
    """
    _end_with_parent()
    rank, pulse = int(os.environ["RANK"]), Pulse()
    folder.workers.mkdir(exist_ok=True)
    with (
        open(stack_file(folder.workers, rank), "w", encoding="utf-8") as stacks,
        Heartbeat(pulse, folder.workers, rank),
    ):
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
        code = _try_to_work(folder, rank, pulse)
        faulthandler.unregister(signal.SIGUSR1)
    return code


def _try_to_work(folder: RunFolder, rank: int, pulse: Pulse) -> int:
    """The exit code."""
    try:
        _work(folder, pulse)
    except FastServeError as error:
        _leave_failure(folder.path / FAILURE, error)
        return error.exit_code
    except Exception as error:
        failures.leave(folder.workers / "failures", rank, pulse, error)
        if device.ran_out(error):
            _leave_failure(folder.path / FAILURE, _out_of_memory(rank, pulse))
        return 1
    return 0


def _out_of_memory(rank: int, pulse: Pulse) -> TrainingError:
    return TrainingError(
        f"worker {rank} on {socket.gethostname()} is out of memory after step {pulse.step} ({pulse.doing}): use a "
        "smaller train.batch, text.max_length or network, or fewer workers on a machine"
    )


def _work(folder: RunFolder, pulse: Pulse) -> None:
    from fastserve.training.train import work

    origin = Origin.from_json(json.loads((folder.path / JOB).read_text("utf-8")))
    place = device.pick_device(origin.config.train.device)
    world = World.join(place, origin.config.distributed.timeout_seconds, pulse)
    if world.local_size < world.size:
        check_shared(folder, world)
    work(origin, folder, world)
    world.leave()


def check_shared(folder: RunFolder, world: World) -> None:
    """StorageError on all workers where one of them does not see a file that the leader writes."""
    name = world.told(f"shared-{time.time_ns()}")
    host = world.told(socket.gethostname())
    path = folder.workers / name
    if world.leads:
        path.touch()
    seen = world.gather(np.array([_comes(path)]))
    hosts = world.gather(np.array([socket.gethostname()[:64].ljust(64).encode()]).view(np.uint8).reshape(1, -1))
    if world.leads:
        path.unlink()
    blind = {bytes(name).decode().strip() for name, sees in zip(hosts, seen, strict=True) if not sees}
    if blind:
        raise StorageError(
            f"$FASTSERVE_HOME ({home()} here) is not shared by the machines: {', '.join(sorted(blind))} does not see "
            f"what {host} writes there. Set it, on every machine, to a folder on storage that all of them share"
        )


def _comes(path: Path) -> bool:
    deadline = time.monotonic() + SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _end_with_parent() -> None:
    """Let the system end this process with the one that started it, however that ends."""
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before that
        os._exit(1)


def _leave_failure(path: Path, error: FastServeError) -> None:
    if not path.exists():
        files.write_json(path, {"kind": type(error).__name__, "message": str(error)})


def _raise_failure(path: Path) -> None:
    """The error that a worker left, as if it had been raised here."""
    if path.is_file():
        content = json.loads(path.read_text("utf-8"))
        kind: Any = getattr(errors, content["kind"], errors.TrainingError)
        raise kind(content["message"])
