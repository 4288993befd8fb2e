"""Workers on Ray train the model that workers without it train, also when they or their machines are lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import FAULTY, REVIEWS, assert_same, checkpoint, environment, failed, finished, heartbeat, start, wait_for

from fastserve.config import DistributedConfig
from fastserve.distributed import launcher
from fastserve.errors import ConfigError, MissingExtraError, NotFoundError
from hosts import Hosts
from ray_nodes import TOKEN, start_head, start_node

TWO = ["--workers", "2", "train.checkpoint_seconds=0", "train.epochs=4"]
ON_RAY = [*TWO, "--on", "ray"]
START_SECONDS = 300
"""A Ray takes some 20 s of processor time to start."""
Weights = Mapping[str, torch.Tensor]

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: the extra 'ray'")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    weights, _ = finished(start(tmp_path_factory.mktemp("undisturbed"), *FAULTY, *TWO))
    return weights


# Without Ray


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_the_extra_it_is_named_before_any_work(tmp_path: Path) -> None:
    said = failed(start(tmp_path, *REVIEWS, "--on", "ray"), 2)
    assert said.strip() == "error: training on 'ray' needs the extra 'ray': pip install 'fastserve-lm[ray]'"
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "fastserve.distributed.ray", raising=False)
    with pytest.raises(MissingExtraError, match=r"fastserve-lm\[ray\]"):
        launcher.pick(DistributedConfig(run_on="ray:10.0.0.1:6379"))


@pytest.mark.parametrize(
    ("on", "error", "said"),
    [
        ("rai", NotFoundError, "did you mean 'ray'"),
        ("local:host1", ConfigError, "local takes no address"),
        ("kubernetes", NotFoundError, "available: local, ray"),
    ],
)
def test_a_wrong_launcher_is_said_before_any_work(on: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        launcher.pick(DistributedConfig(run_on=on))
    assert said in failed(start(tmp_path, *REVIEWS, "--on", on), 2)
    assert not (tmp_path / "runs").exists()


def test_what_follows_the_name_is_an_address() -> None:
    assert DistributedConfig(run_on="ray").launcher == ("ray", None)
    assert DistributedConfig(run_on="ray:head:6379").launcher == ("ray", "head:6379")
    assert DistributedConfig().launcher == ("local", None)
    assert DistributedConfig(nodes="2").meets
    assert not DistributedConfig(nodes="2", run_on="ray").meets


# With Ray


@needs_ray
@pytest.mark.parametrize(
    ("asked", "accelerated", "gpus", "workers"),
    [(3, True, [8, 8], 3), (None, True, [0, 8, 4], 4), (None, True, [0, 0], 1), (None, False, [8, 8], 1)],
)
def test_auto_is_what_the_machines_of_the_cluster_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: int | None, accelerated: bool, gpus: list[int], workers: int
) -> None:
    """Not what the machine of the command has, which may be none of those that compute."""
    import ray

    from fastserve.distributed.ray import settled

    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": float(number)}} for number in gpus]
    lost = {"Alive": False, "Resources": {"GPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, lost])
    plan = launcher.Launch(
        command=(), work=lambda: 0, workers=asked, accelerated=accelerated, run_id="a", logs=tmp_path, restarts=0,
        stall_seconds=1, timeout_seconds=1, hopeless=lambda: False, done=lambda: False, give_up=lambda error: None,
    )  # fmt: skip
    assert settled(plan).workers == workers


@needs_ray
@pytest.mark.heavy
def test_two_workers_on_ray_train_the_model_of_two_workers(tmp_path: Path, undisturbed: Weights) -> None:
    weights, said = finished(start(tmp_path, *FAULTY, *ON_RAY))
    assert_same(weights, undisturbed)
    assert said.count("epoch 4, step") == 1
    assert said.count("training ended at step") == 1
    assert "Worker" not in said
    assert "Token" not in said


@needs_ray
@pytest.mark.heavy
def test_a_killed_worker_is_replaced(tmp_path: Path, undisturbed: Weights) -> None:
    process = start(tmp_path, *FAULTY, *ON_RAY)
    wait_for(checkpoint(tmp_path), process, START_SECONDS)
    os.kill(heartbeat(tmp_path, 1)["pid"], signal.SIGKILL)
    weights, said = finished(process)
    assert said.count("all workers start again from the last checkpoint (9 restarts left)") == 1
    assert "worker 1 is gone" in said or "worker 0 lost its connection" in said
    assert said.count("resumed at step") == 1
    assert "Traceback" not in said
    assert_same(weights, undisturbed)


@needs_ray
@pytest.mark.heavy
def test_a_failure_that_comes_again_ends_the_run_and_names_its_traceback(tmp_path: Path) -> None:
    words = [*FAULTY, "--workers", "2", "--on", "ray", "train.checkpoint_seconds=600"]
    said = failed(start(tmp_path, *words, env={"FAULT": "raise:1:4"}), 1)
    assert said.count("all workers start again") == 2
    assert "ValueError: the ninth life is gone, 3 times in a row" in said.splitlines()[-1]
    assert "Traceback" not in said


@needs_ray
@pytest.mark.heavy
def test_a_mistake_that_only_workers_see_is_said_once(tmp_path: Path) -> None:
    said = failed(start(tmp_path, *FAULTY, "--workers", "2", "--on", "ray", "distributed.strategy=dpp"), 2)
    assert said.count("no strategy is called 'dpp'") == 1
    assert said.splitlines()[-1].startswith("error: no strategy is called 'dpp': did you mean 'ddp'?")
    assert "start again" not in said


@needs_ray
@pytest.mark.heavy
def test_a_signal_ends_the_command_and_its_ray(tmp_path: Path) -> None:
    process = start(tmp_path, *FAULTY, *ON_RAY)
    wait_for(checkpoint(tmp_path), process, START_SECONDS)
    workers = [heartbeat(tmp_path, rank)["pid"] for rank in range(2)]
    process.send_signal(signal.SIGTERM)
    said = failed(process, 143)
    assert said.count("goes on when the same command is run again") == 1
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@needs_ray
@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_machine_goes_on(
    make_hosts: Callable[..., Hosts], tmp_path: Path, undisturbed: Weights
) -> None:
    """The head has room for both workers, so that they are as many as before."""
    hosts = make_hosts(2)
    env = environment(tmp_path)
    address = start_head(hosts[0], folder=tmp_path, env=env)
    start_node(hosts[1], f"--address={address}", folder=tmp_path, env=env)
    words = [*FAULTY, *TWO, "--workers", "1", "--nodes", "2", "--on", f"ray:{address}"]
    process = start(tmp_path, *words, env=TOKEN, run=hosts[0].popen)
    wait_for(checkpoint(tmp_path), process, START_SECONDS)
    assert {heartbeat(tmp_path, rank)["host"] for rank in range(2)} == {"host0", "host1"}
    hosts[1].end()
    weights, said = finished(process)
    assert said.count("all workers start again from the last checkpoint") == 1
    assert_same(weights, undisturbed)
