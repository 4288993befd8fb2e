"""Whatever dies, hangs or fails: the run ends with the weights of one that was left alone, or says once why not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import (
    FAULTY,
    assert_same,
    checkpoint,
    failed,
    finished,
    heartbeat,
    start,
    step,
    wait_for,
    worker_of,
)

TWO = ["--workers", "2", "train.checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    weights, _ = finished(start(tmp_path_factory.mktemp("undisturbed"), *FAULTY, *TWO, "train.epochs=4"))
    return dict(weights)


def test_a_failure_that_comes_again_ends_the_run_and_names_its_traceback(tmp_path: Path) -> None:
    """Without a checkpoint in between: three times the same, at the same step."""
    words = [*FAULTY, "--workers", "2", "train.checkpoint_seconds=600"]
    said = failed(start(tmp_path, *words, env={"FAULT": "raise:1:4"}), 1)
    assert said.count("all workers start again") == 2
    error = said.splitlines()[-1]
    assert "worker 1 failed after step 3" in error
    assert "ValueError: the ninth life is gone, 3 times in a row" in error
    traceback = Path(error.partition("Its traceback is in ")[2].partition(";")[0]).read_text("utf-8")
    assert "in _fail" in traceback
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_memory_that_runs_out_is_no_defect(tmp_path: Path, workers: str) -> None:
    """The last worker asks for more than any machine has; it would again, so that none starts again."""
    env = {"FAULT": f"memory:{int(workers) - 1}:2"}
    said = failed(start(tmp_path, *FAULTY, "--workers", workers, env=env), 1)
    assert "out of memory" in said.splitlines()[-1]
    assert "smaller train.batch" in said.splitlines()[-1]
    assert "start again" not in said
    assert "defect" not in said


@pytest.mark.heavy
def test_a_failure_that_does_not_come_again_costs_a_restart(tmp_path: Path, undisturbed: dict[str, object]) -> None:
    """After the restart, the worker counts its calls from the checkpoint and has fewer left than it fails at."""
    words = [*FAULTY, *TWO, "train.epochs=4"]
    weights, said = finished(start(tmp_path, *words, env={"FAULT": "raise:1:100"}))
    assert said.count("all workers start again") == 1
    assert "worker 1 failed after step" in said
    assert_same(weights, undisturbed)


@pytest.mark.heavy
def test_workers_end_with_a_parent_that_is_killed_and_the_command_goes_on(
    tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    words = [*FAULTY, *TWO, "train.epochs=4"]
    process = start(tmp_path, *words)
    wait_for(checkpoint(tmp_path), process)
    workers = [worker_of(process, rank) for rank in range(2)]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    weights, said = finished(start(tmp_path, *words))
    assert "going on with the unfinished run" in said
    assert "resumed at step" in said
    assert_same(weights, undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_command_ends_its_workers_at_once(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, *FAULTY, "--workers", "2", "train.epochs=100")
    wait_for(step(tmp_path, 1, ranks=(0, 1)), process)
    workers = [worker_of(process, rank) for rank in range(2)]
    os.kill(workers[1] or 0, signal.SIGSTOP)
    began = time.monotonic()
    process.send_signal(number)
    said = failed(process, code)
    assert time.monotonic() - began < 15, "a worker that is stopped is not waited for"
    assert said.count("goes on when the same command is run again") == 1
    assert "Traceback" not in said
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.heavy
def test_a_worker_that_is_stopped_is_named_and_replaced(tmp_path: Path, undisturbed: dict[str, object]) -> None:
    words = [*FAULTY, *TWO, "train.epochs=4"]
    process = start(tmp_path, *words, "distributed.stall_seconds=4", "distributed.timeout_seconds=20")
    wait_for(checkpoint(tmp_path), process)
    wait_for(step(tmp_path, 5, ranks=(0, 1)), process)
    os.kill(wait_for(lambda: worker_of(process, 1), process), signal.SIGSTOP)
    weights, said = finished(process)
    assert said.count("holds the others up") == 1
    assert "worker 1 holds the others up. It is stopped (kill -CONT" in said
    assert "wait in the exchange" in said
    assert "its Python stack" in said
    assert "worker 0 ended with exit code 1, since it waited in vain for others; all workers start again" in said
    assert_same(weights, undisturbed)


@pytest.mark.heavy
def test_a_worker_that_hangs_is_named_with_the_line_where_it_hangs(tmp_path: Path) -> None:
    words = [*FAULTY, *TWO, "train.epochs=3", "distributed.stall_seconds=4", "distributed.timeout_seconds=20"]
    _, said = finished(start(tmp_path, *words, env={"FAULT": "hang:0:80"}))
    assert said.count("worker 0 holds the others up. It runs, after step") == 1
    assert "in: forward; 1 wait in the exchange backward" in said
    assert "in _fall_asleep" in said


@pytest.mark.heavy
def test_a_heartbeat_says_what_a_worker_does(tmp_path: Path) -> None:
    process = start(tmp_path, *FAULTY, "--workers", "2", "train.epochs=100")
    wait_for(step(tmp_path, 20, ranks=(0, 1)), process)
    beat = heartbeat(tmp_path, 1)
    assert beat["pid"] == worker_of(process, 1)
    assert "loop.py" in beat["stack"]
    process.terminate()
    failed(process, 143)


@pytest.mark.heavy
def test_the_newest_checkpoint_is_damaged_and_the_one_before_is_used(
    tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    words = [*FAULTY, *TWO, "train.epochs=4"]
    process = start(tmp_path, *words)
    wait_for(lambda: len(checkpoint(tmp_path)()) >= 2, process)
    process.kill()
    process.communicate()
    newest = checkpoint(tmp_path)()[-1]
    damaged = max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    weights, said = finished(start(tmp_path, *words))
    assert f"checkpoint {newest.name} is damaged and is not used" in said
    assert_same(weights, undisturbed)


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], None]]:
    """Mounts a disk of a few megabytes in the place of a folder, whose files it keeps."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine allows no mounts: {done.stderr.strip()}")
        mounted.append(folder)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Let the disk have no room left."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass


@pytest.mark.heavy
def test_a_full_disk_costs_checkpoints_and_not_the_run(
    tmp_path: Path, undisturbed: dict[str, object], small_disk: Callable[[Path], None]
) -> None:
    words = [*FAULTY, *TWO, "train.epochs=4"]
    process = start(tmp_path, *words)
    wait_for(checkpoint(tmp_path), process)
    process.kill()
    process.communicate()
    folder = checkpoint(tmp_path)()[-1].parent
    small_disk(folder)
    kept = len(checkpoint(tmp_path)())
    fill(folder / "filler")
    process = start(tmp_path, *words)
    wait_for(lambda: heartbeat(tmp_path, 0).get("pid") == worker_of(process, 0), process)
    reached = wait_for(lambda: int(heartbeat(tmp_path, 0).get("step", 0)), process)
    wait_for(step(tmp_path, reached + 40), process)
    assert len(checkpoint(tmp_path)()) <= kept
    (folder / "filler").unlink()
    weights, said = finished(process)
    assert "the disk is full" in said
    assert "The run goes on" in said
    assert int(checkpoint(tmp_path)()[-1].name) > reached + 40, "the next one works"
    assert_same(weights, undisturbed)
