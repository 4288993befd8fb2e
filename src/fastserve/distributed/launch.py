"""Start the workers of a run on this machine and replace those that are lost: torchrun's elastic agent, embedded."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous_registry
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from fastserve import config, log
from fastserve.distributed.every import Every
from fastserve.distributed.failures import Failures
from fastserve.distributed.launcher import Launch
from fastserve.distributed.meeting import NOWHERE, Meeting, Place
from fastserve.distributed.network import interface_towards
from fastserve.distributed.stall import Doctor
from fastserve.distributed.strangers import Strangers
from fastserve.errors import ConfigError, StorageError, TrainingError

LOOPBACK = "127.0.0.1"
JOIN_SECONDS = 600
"""How long the least number of machines may take to come together."""
LAST_CALL_SECONDS = 10
"""How long more machines than the least number are waited for."""
READ_SECONDS = 20
"""How long the place where machines meet may take to answer before it is taken for lost."""
KEEP_ALIVE_SECONDS = 2
"""Machines tell each other so often that they live; one that has missed three is gone."""
BLIND_SECONDS = 1.0
"""How often the machine that keeps the meeting looks whether one came that cannot take part."""
EXIT_SECONDS = 60
"""How long a machine whose workers are done waits for the others to see the same."""
PARENT = "FASTSERVE_PARENT"
"""Environment variable of workers: the process that started them, without which they end."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Those that torch's processes handle too."""
STOPPED = "stopped. An unfinished training run goes on when the same command is run again"


class Elastic:
    """On this machine, and on those where the same command was given."""

    def __init__(self, address: str | None = None) -> None:
        if address is not None:
            raise ConfigError(
                f"distributed.run_on=local:{address}: local takes no address; machines meet at distributed.rendezvous"
            )

    def launch(self, plan: Launch) -> None:
        log_to(plan.logs / "agent.log", "torch.distributed.elastic")
        with signals_end_it():
            if not plan.rendezvous:
                _run(plan, None)
            else:
                _run_on_machines(plan)


def _run_on_machines(plan: Launch) -> None:
    """Meet the other machines, and again elsewhere when the place where they met is lost."""
    with Meeting(plan.logs, plan.rendezvous) as meeting:
        while not (plan.done() or plan.hopeless()):
            place = meeting.place(JOIN_SECONDS)
            try:
                _run(plan, place)
            except PLACE_LOST as error:
                meeting.reached = NOWHERE
                _check_blind(place)
                if not (plan.done() or plan.hopeless()):
                    why = str(error).partition("\n")[0] or type(error).__name__
                    log.warn(f"the place where the machines meet, {place.endpoint}, is lost: {why}")
            except RendezvousTimeoutError:
                raise TrainingError(
                    f"fewer than {plan.nodes[0]} machines came to {place.endpoint} within {JOIN_SECONDS} s: start the "
                    "same command on each of them, with the same configuration, data and version of fastserve"
                ) from None


def _check_blind(place: Place) -> None:
    """StorageError where the place was given up since a machine came that does not share the storage."""
    if place.stranger is not None:
        raise StorageError(
            f"$FASTSERVE_HOME ({config.home()} here) is not shared by the machines: {place.stranger} came to "
            f"{place.endpoint} and does not see what is written here. Set it, on every machine, to a folder on storage "
            "that all of them share"
        )


class MovedError(Exception):
    """The machines meet elsewhere now."""


PLACE_LOST = (MovedError, RendezvousClosedError, RendezvousConnectionError, DistError)
"""DistError: what a store says when the machine that hosts it is gone."""


def _run(plan: Launch, place: Place | None) -> None:
    agent = Agent(plan, _specification(plan, place), place)
    try:
        with Every(BLIND_SECONDS, agent.hear, "strangers") if place is not None and place.hosts else nullcontext():
            result = agent.run()
    except BaseException:
        agent.leave()
        raise
    agent.close()
    if result is not None and result.is_failed() and not plan.hopeless():
        raise TrainingError(agent.say_given_up(result))


class Agent(LocalElasticAgent):
    """Watches the workers of this machine, says when it loses one or one holds the others up, and does not restart
    what cannot succeed."""

    def __init__(self, plan: Launch, specification: WorkerSpec, place: Place | None) -> None:
        logs = DefaultLogsSpecs(log_dir=str(plan.logs / "agent"))
        super().__init__(specification, logs_specs=logs, exit_barrier_timeout=EXIT_SECONDS)
        self.plan, self.place = plan, place
        self.failures = Failures(plan.logs / "failures")
        self._ended: set[int] = set()
        self.doctor = Doctor(plan.logs, plan.stall_seconds)
        self.strangers = None if place is None else Strangers(place.endpoint)
        self._started = False

    def hear(self) -> None:
        """Give the place up where a machine that is waited for can never come; ignore it where nobody waits."""
        if self._started or self.place is None or self.strangers is None or self.place.stranger is not None:
            return
        self.place.stranger = self.strangers.heard()
        if self.place.stranger is not None and not self._started:
            handler: Any = self._worker_group.spec.rdzv_handler
            with contextlib.suppress(Exception):  # it is being given up already
                handler.set_closed()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._started = True
        self._check_place()
        self.failures.begin()
        pids: dict[int, Any] = super()._start_workers(worker_group)
        self._end_at_once()
        workers = worker_group.workers
        self.doctor.begin(workers[0].world_size, {workers[local].global_rank: pid for local, pid in pids.items()})
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._check_place()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            self._failed(result)
        elif result.state == WorkerState.HEALTHY and (told := self.doctor.look()):
            log.warn(told)
        return result

    def _failed(self, result: RunResult) -> None:
        self.failures.remember(self.failures.cause())
        if self.plan.hopeless() or self.failures.repeats:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            log.warn(
                f"{self._say_lost(result)}; all workers start again from the last checkpoint "
                f"({self._remaining_restarts} restarts left)"
            )

    def _say_lost(self, result: RunResult) -> str:
        """The cause where a worker told it, else the death of one; the connections that are lost with it last."""
        cause = self.failures.last
        fallen = {rank: each for rank, each in result.failures.items() if each.pid not in self._ended}
        killed = [(rank, each) for rank, each in fallen.items() if each.exitcode < 0]
        if cause is not None and not killed:
            return f"{cause}; its traceback is in {cause.traceback}"
        return _say_failure(*min(killed or fallen.items() or result.failures.items()))

    def say_given_up(self, result: RunResult) -> str:
        return self.failures.say_given_up(self.plan.restarts, self._say_lost(result))

    def _check_place(self) -> None:
        if self.place is not None and self.place.moved():
            raise MovedError("the other machines meet elsewhere")

    def _end_at_once(self) -> None:
        """Let the workers be ended by SIGKILL: one that is stopped would not hear SIGTERM, for which torch waits half a
        minute, and none has anything to do before its end."""
        context: Any = self._pcontext
        close = context._close

        def end(death_sig: signal.Signals, timeout: int = 30) -> None:
            self._ended |= {handler.proc.pid for handler in _alive(context)}
            close(signal.SIGKILL, timeout)

        context._close = end

    def leave(self) -> None:
        """Let the other machines go on without this one."""
        handler: Any = self._worker_group.spec.rdzv_handler
        handler._stop_heartbeats()

    def close(self) -> None:
        """Let the other machines know that there is nothing more to do."""
        self._worker_group.spec.rdzv_handler.shutdown()


def _alive(context: Any) -> list[Any]:
    """Of torch's handlers of processes, those whose process runs."""
    return [handler for handler in context.subprocess_handlers.values() if handler.proc.poll() is None]


def _say_failure(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"worker {rank} ended with exit code {failure.exitcode}, since it waited in vain for others"
    return f"worker {rank} was killed by {signal.Signals(-failure.exitcode).name}"


def _specification(plan: Launch, place: Place | None) -> WorkerSpec:
    local_address, endpoint, hosts = LOOPBACK, f"{LOOPBACK}:0", True
    if place is not None:
        interface = interface_towards(place.endpoint)
        local_address, endpoint, hosts = interface.address, str(place.endpoint), place.hosts
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface.name)
    # each start has a store of its own: in one that is shared, workers find the addresses of those before them, and
    # a group that grows looks for it where it was
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[PARENT] = str(os.getpid())
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=endpoint,
        run_id=plan.run_id,
        min_nodes=plan.nodes[0],
        max_nodes=plan.nodes[1],
        local_addr=local_address,
        is_host=str(hosts).lower(),
        join_timeout=JOIN_SECONDS,
        last_call_timeout=LAST_CALL_SECONDS,
        read_timeout=READ_SECONDS,
        keep_alive_interval=KEEP_ALIVE_SECONDS,
    )
    arguments: tuple[Any, ...] = tuple(plan.command[1:])
    return WorkerSpec(
        role="worker",
        local_world_size=plan.workers or max(1, torch.cuda.device_count()),
        entrypoint=plan.command[0],
        args=arguments,
        rdzv_handler=rendezvous_registry.get_rendezvous_handler(parameters),
        max_restarts=plan.restarts,
        monitor_interval=0.1,
        local_addr=local_address,
    )


def _end(number: int, frame: FrameType | None) -> None:
    raise SignalException("", signal.Signals(number))


@contextlib.contextmanager
def signals_end_it() -> Iterator[None]:
    """SIGTERM and SIGINT end workers and command as they end a run without workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        signal.signal(number, _end)
    try:
        yield
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        log.warn(STOPPED)
        sys.exit(128 + error.sigval)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to(path: Path, name: str) -> None:
    """The lines of that logger go to a file of the run: the user is told what matters by `fastserve.log`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(name)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
