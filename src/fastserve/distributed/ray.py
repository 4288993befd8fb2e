"""Workers on Ray: Ray Train places them and replaces those that are lost; what they do is what they do without it.

The checkpoints are those of the run's folder, which all machines share; nothing of them goes through Ray. What the
leader and Ray's controller have to say goes to files of that folder, which the command reads to the user.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from fastserve import log
from fastserve.distributed import ray_cluster
from fastserve.distributed.failures import Failures
from fastserve.distributed.launch import log_to, signals_end_it
from fastserve.distributed.launcher import Launch
from fastserve.distributed.stall import Doctor
from fastserve.errors import FastServeError, StorageError, TrainingError

SETTINGS = {
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # on a busy machine the usual minute is too short, again and again
}
LOOK_SECONDS = 0.2
LEADER, CONTROLLER = "rank-0.log", "ray-told.log"


class OnRay:
    """address: of a cluster that this machine is part of, or `auto`; None for $RAY_ADDRESS or a Ray of our own."""

    def __init__(self, address: str | None = None) -> None:
        self.address = ray_cluster.meant(address)

    def launch(self, plan: Launch) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        with ray_cluster.attached(self.address, _most(plan), TrainingError) as is_for_this, signals_end_it():
            if is_for_this:
                log_to(plan.logs / "ray.log", "ray")
            plan = settled(plan)
            fit = Fit(_trainer(plan, ray_cluster.variables(self.address)))
            fit.start()
            _follow(plan, fit)
        if fit.error is not None and not plan.hopeless():
            why = " ".join(str(fit.error).split()[:40]) or type(fit.error).__name__
            raise TrainingError(f"Ray cannot go on: {why}. More is in {plan.logs}") from fit.error


class Fit(threading.Thread):
    """Waits for Ray Train aside, so that signals reach the command (Ray would take SIGINT for itself)."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            self.error = error


def _trainer(plan: Launch, variables: Mapping[str, str]) -> TorchTrainer:
    have = ray.cluster_resources()
    gpus = plan.accelerated and have.get("GPU", 0) >= _least(plan)
    kind = "GPU" if gpus else "CPU"
    if have.get(kind, 0) < _least(plan):
        log.warn(f"Ray has {have.get(kind, 0):.0f} {kind} for {_least(plan)} workers: it waits until there are more")
    return TorchTrainer(
        _work,
        train_loop_config={"plan": plan, "folder": os.getcwd()},
        torch_config=TorchConfig("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=int(plan.timeout_seconds)),
        scaling_config=train.ScalingConfig(
            num_workers=_least(plan) if _least(plan) == _most(plan) else (_least(plan), _most(plan)),
            use_gpu=gpus,
            placement_strategy="PACK" if plan.nodes[1] == 1 else "SPREAD",
        ),
        run_config=train.RunConfig(
            name=plan.run_id,
            storage_path=str(plan.logs / "ray"),
            failure_config=train.FailureConfig(max_failures=plan.restarts),
            callbacks=[Losses(plan)],
            worker_runtime_env={"env_vars": dict(variables)} if variables else None,
        ),
    )


def settled(plan: Launch) -> Launch:
    """With the number of workers of each machine: where it is not said, the GPUs of one of the cluster that has any."""
    if plan.workers is not None:
        return plan
    found = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    gpus = min((number for number in found if number), default=0) if plan.accelerated else 0
    return replace(plan, workers=gpus or 1)


def _least(plan: Launch) -> int:
    return (plan.workers or 1) * plan.nodes[0]


def _most(plan: Launch) -> int:
    return (plan.workers or 1) * plan.nodes[1]


# In a worker's process


class EndedError(Exception):
    """What a worker has to say is in the run's folder."""


def _work(settings: Mapping[str, Any]) -> None:
    """What Ray runs in each worker, once the process group is there and the environment says which one it is."""
    plan: Launch = settings["plan"]
    if plan.done():
        return
    if not plan.logs.is_dir():
        raise StorageError(
            f"{plan.logs} is not to be seen on {os.uname().nodename}: set $FASTSERVE_HOME to a folder on storage that "
            "all machines of the Ray cluster share"
        )
    if Path(settings["folder"]).is_dir():
        os.chdir(settings["folder"])  # where the user's own modules are looked for
    rank = train.get_context().get_world_rank()
    log.speak_into(plan.logs / f"rank-{rank}.log")
    log.configure()
    log_to(plan.logs / f"ray-{rank}.log", "ray.train")
    code = plan.work()
    if code:
        raise EndedError(f"worker {rank} ended with exit code {code}")


# In the controller's process, on the machine of the command


class Losses(train.UserCallback):  # type: ignore[misc]
    """Says what was lost, and ends a run that would fail again."""

    def __init__(self, plan: Launch) -> None:
        self.plan, self.left = plan, plan.restarts
        self.failures = Failures(plan.logs / "failures")
        self.failures.begin()

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self.failures.remember(self.failures.cause())
        self.failures.begin()
        lost = self._say(worker_exceptions)
        blind = [error for error in map(_cause, worker_exceptions.values()) if isinstance(error, FastServeError)]
        if blind:
            self.plan.give_up(blind[0])
        elif self.failures.repeats or not self.left:
            self.plan.give_up(TrainingError(self.failures.say_given_up(self.plan.restarts, lost)))
        if self.plan.hopeless():
            raise TrainingError(lost)  # an error of the controller, unlike one of a worker, ends the run at once
        self.left -= 1
        with open(self.plan.logs / CONTROLLER, "a", encoding="utf-8") as file:
            again = f"all workers start again from the last checkpoint ({self.left} restarts left)"
            file.write(f"warning: {lost}; {again}\n")

    def _say(self, errors: Mapping[int, Exception]) -> str:
        """The cause where a worker told it, else what Ray says of one that is gone."""
        cause = self.failures.last
        if cause is not None:
            return f"{cause}; its traceback is in {cause.traceback}"
        gone = [rank for rank, error in errors.items() if not isinstance(_cause(error), EndedError)]
        if gone:
            return f"worker {min(gone)} is gone"
        return f"worker {min(errors)} lost its connection to another one"


def _cause(error: BaseException) -> BaseException:
    """The exception of the work, out of what Ray may wrap it in; Ray's own where the worker is gone."""
    inner: BaseException = getattr(error, "_base_exc", error)
    return inner


# In the command's process


def _follow(plan: Launch, fit: Fit) -> None:
    """Tell the user what is told by the leader, by the controller, and by the doctor, until the run ends."""
    leader, controller = Told(plan.logs / LEADER), Told(plan.logs / CONTROLLER)
    doctor = Doctor(plan.logs, plan.stall_seconds, start_seconds=math.inf)  # how long a start takes is Ray's affair
    doctor.begin(_least(plan), {})
    while True:
        alive = fit.is_alive()
        leader.tell()
        if controller.tell():
            doctor.begin(_least(plan), {})
        if not alive:
            return
        if told := doctor.look():
            log.warn(told)
        fit.join(LOOK_SECONDS)


class Told:
    """The lines that are added to a file from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = path.stat().st_size if path.exists() else 0

    def tell(self) -> int:
        """Say those that are new; how many there were."""
        if not self.path.exists():
            return 0
        with open(self.path, "rb") as file:
            file.seek(self.place)
            whole, end, _ = file.read().rpartition(b"\n")
        self.place += len(whole + end)
        lines = (whole + end).decode("utf-8", "replace").splitlines()
        for line in lines:
            text = line.removeprefix("warning: ")
            (log.say if text == line else log.warn)(text)
        return len(lines)
