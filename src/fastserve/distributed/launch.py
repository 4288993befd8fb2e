"""Start the workers of a run on this machine and replace those that are lost: torchrun's elastic agent, embedded."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous_registry

from fastserve import log
from fastserve.distributed.network import Endpoint, interface_towards
from fastserve.errors import TrainingError

LOOPBACK = "127.0.0.1"
JOIN_SECONDS = 600
"""How long the least number of machines may take to come together."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start.

    command: what a worker runs, without the environment of torchrun that it is given. workers: on this machine.
    nodes: least and most machines. rendezvous: where they meet; None for one machine. run_id: the same on all machines.
    hopeless: whether a failure will come again, so that lost workers are not replaced.
    """

    command: Sequence[str]
    workers: int
    run_id: str
    logs: Path
    restarts: int
    nodes: tuple[int, int] = (1, 1)
    rendezvous: Endpoint | None = None
    hopeless: Callable[[], bool] = lambda: False


def launch(plan: Launch) -> None:
    """Run until every worker has ended well. TrainingError says which could not be replaced."""
    _log_to(plan.logs)
    agent = Agent(plan, _specification(plan))
    try:
        result = agent.run()
    finally:
        agent.close()
    if result.is_failed() and not plan.hopeless():
        lost = "; ".join(_say_failure(rank, failure) for rank, failure in sorted(result.failures.items()))
        raise TrainingError(
            f"the run is given up after {plan.restarts} restarts: {lost}. What the workers said is in {plan.logs}; "
            "run the same command again to go on from the last checkpoint"
        )


class Agent(LocalElasticAgent):
    """Watches the workers of this machine, says when it loses one, and does not restart what cannot succeed."""

    def __init__(self, plan: Launch, specification: WorkerSpec) -> None:
        super().__init__(specification, logs_specs=DefaultLogsSpecs(log_dir=str(plan.logs / "agent")))
        self.plan = plan

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            if self.plan.hopeless():
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                self._say_lost(result)
        return result

    def _say_lost(self, result: RunResult) -> None:
        first = min(result.failures.values(), key=lambda failure: failure.timestamp)
        rank = next(rank for rank, failure in result.failures.items() if failure is first)
        log.warn(
            f"{_say_failure(rank, first)}; all workers start again from the last checkpoint "
            f"({self._remaining_restarts} restarts left)"
        )

    def close(self) -> None:
        """Let the other machines know that this one is done, or gone."""
        self._worker_group.spec.rdzv_handler.shutdown()


def _say_failure(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"worker {rank} ended with exit code {failure.exitcode}"
    return f"worker {rank} was killed by {signal.Signals(-failure.exitcode).name}"


def _specification(plan: Launch) -> WorkerSpec:
    local_address, settings = LOOPBACK, {"is_host": "true"}
    endpoint = f"{LOOPBACK}:0"
    if plan.rendezvous is not None:
        interface = interface_towards(plan.rendezvous)
        local_address, endpoint = interface.address, str(plan.rendezvous)
        settings = {"is_host": str(interface.owns(plan.rendezvous)).lower()}
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface.name)
        # a worker group that grows would else look for its store in the agent that is gone
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=endpoint,
        run_id=plan.run_id,
        min_nodes=plan.nodes[0],
        max_nodes=plan.nodes[1],
        local_addr=local_address,
        join_timeout=JOIN_SECONDS,
        **settings,
    )
    arguments: tuple[Any, ...] = tuple(plan.command[1:])
    return WorkerSpec(
        role="worker",
        local_world_size=plan.workers,
        entrypoint=plan.command[0],
        args=arguments,
        rdzv_handler=rendezvous_registry.get_rendezvous_handler(parameters),
        max_restarts=plan.restarts,
        monitor_interval=0.1,
        local_addr=local_address,
    )


def _log_to(folder: Path) -> None:
    """The agent's own lines go to a file of the run: the user is told what matters by `fastserve.log`."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("torch.distributed.elastic")
    handler = logging.FileHandler(folder / "agent.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
