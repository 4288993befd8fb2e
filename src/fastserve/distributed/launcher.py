"""The seam between a run and those who start its workers: on this machine, on machines that meet, on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastserve.config import DistributedConfig
from fastserve.distributed.network import Endpoint
from fastserve.errors import FastServeError
from fastserve.plugins import LAUNCHERS


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start.

    command: what a worker runs, without the environment of torchrun that it is given. work: the same as a function of
    a process that has this environment; the exit code. workers: on each machine; None: as many as it has GPUs, or one.
    accelerated: may compute on a GPU.
    logs: folder for what is told of the workers, on storage that all machines share. nodes: least and most machines.
    rendezvous: where they may meet; none for one machine. run_id: the same on all machines.
    stall_seconds: without a move until it is said who holds the others up. timeout_seconds: of an exchange.
    hopeless: whether a failure will come again, so that lost workers are not replaced. done: whether the run is.
    give_up: make it hopeless, for that reason.
    """

    command: Sequence[str]
    work: Callable[[], int]
    workers: int | None
    accelerated: bool
    run_id: str
    logs: Path
    restarts: int
    stall_seconds: float
    timeout_seconds: float
    hopeless: Callable[[], bool]
    done: Callable[[], bool]
    give_up: Callable[[FastServeError], None]
    nodes: tuple[int, int] = (1, 1)
    rendezvous: Sequence[Endpoint] = ()


class Launcher(Protocol):
    """One way to have workers. Made with what follows the name in `distributed.run_on`, or with None."""

    def __init__(self, address: str | None) -> None: ...

    def launch(self, plan: Launch) -> None:
        """Run until every worker has ended well. TrainingError says which could not be replaced."""
        ...


def pick(settings: DistributedConfig) -> Launcher:
    """The launcher that `distributed.run_on` names. NotFoundError, MissingExtraError, ConfigError: there is none."""
    name, address = settings.launcher
    kind: type[Launcher] = LAUNCHERS.load_optional(name, "training")
    return kind(address)
