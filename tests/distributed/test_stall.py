"""Which worker holds the others up, told from heartbeats alone and from processes that really stand still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastserve.distributed import failures
from fastserve.distributed.failures import Failures, says_lost
from fastserve.distributed.pulse import Heartbeat, Pulse, heartbeat_file
from fastserve.distributed.stall import Doctor, Sight, holding, process_state


def sight(rank: int, step: int, doing: str) -> Sight:
    return Sight(rank, None, 0.0, 0.0, {"step": step, "doing": doing, "host": f"host{rank}"})


WELL = dict.fromkeys(range(4), "")


def held(*sights: Sight, **states: str) -> list[int]:
    return [found.rank for found in holding(list(sights), WELL | {int(k[1:]): v for k, v in states.items()})]


def test_the_one_that_cannot_move_holds_the_others_up() -> None:
    sights = [sight(0, 7, "exchange backward"), sight(1, 7, "exchange backward"), sight(2, 7, "forward")]
    assert held(*sights, r1="is stopped") == [1]
    assert held(*sights, r0="has given no sign of life for 9 s", r1="is gone") == [1, 0]


def test_else_the_one_that_is_not_in_the_exchange() -> None:
    sights = [sight(0, 7, "exchange backward"), sight(1, 7, "forward"), sight(2, 6, "data")]
    assert held(*sights) == [2, 1]


def test_else_the_one_that_is_in_another_exchange() -> None:
    assert held(*(sight(rank, 7, f"exchange {'told' if rank == 2 else 'gather'}") for rank in range(4))) == [2]


def test_nobody_where_all_wait_in_the_same_exchange() -> None:
    assert held(*(sight(rank, 7, "exchange gather") for rank in range(3))) == []
    assert held(*(sight(rank, 7, "forward") for rank in range(3))) == []


def beat(folder: Path, rank: int, **content: object) -> None:
    heartbeat_file(folder, rank).write_text(json.dumps({"rank": rank, "pid": 1, "host": "here", **content}), "utf-8")


def look_until_told(doctor: Doctor, seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if told := doctor.look():
            return told
        time.sleep(0.1)
    return None


def test_a_stall_is_told_once_and_in_time(tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, stall_seconds=1.0)
    doctor.begin(2, {})
    beat(tmp_path, 0, step=5, doing="exchange backward", turns=9, beats=1, stack="loop.py, line 1")
    beat(tmp_path, 1, step=5, doing="data", turns=9, beats=1, stack="store.py, line 2")
    began = time.monotonic()
    told = look_until_told(doctor, 6)
    assert told is not None
    assert time.monotonic() - began < 1.0 + 3.0
    assert "worker 1 on here holds the others up. It runs, after step 5, in: data" in told
    assert "1 wait in the exchange backward after step 5" in told
    assert "store.py, line 2" in told
    assert look_until_told(doctor, 2) is None, "once"
    beat(tmp_path, 1, step=6, doing="data", turns=12, beats=2, stack="")
    assert look_until_told(doctor, 5) is not None, "another stall is another story"


def test_long_work_that_is_known_is_no_stall(tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, stall_seconds=0.5)
    doctor.begin(2, {})
    beat(tmp_path, 0, step=5, doing="report and bundle", turns=9, beats=1)
    beat(tmp_path, 1, step=5, doing="exchange end", turns=9, beats=1)
    assert look_until_told(doctor, 3) is None
    assert look_until_told(doctor, 6) is not None, "it has gone silent in the meantime"


def test_what_lay_there_before_counts_for_nothing(tmp_path: Path) -> None:
    beat(tmp_path, 0, step=5, doing="data", turns=9, beats=1, stack="of the past")
    doctor = Doctor(tmp_path, stall_seconds=0.5, start_seconds=0.5)
    doctor.begin(1, {})
    told = look_until_told(doctor, 4)
    assert told is not None
    assert "of the past" not in told


SLEEPER = """
import faulthandler, signal, sys, time
from pathlib import Path
from fastserve.distributed.pulse import Heartbeat, Pulse, stack_file
folder, pulse = Path(sys.argv[1]), Pulse()
pulse.stepped(3)
def deeply_asleep():
    time.sleep(600)
with open(stack_file(folder, 0), "w") as stacks, Heartbeat(pulse, folder, 0, every_seconds=float(sys.argv[2])):
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    deeply_asleep()
"""


@pytest.mark.parametrize("stopped", [True, False])
def test_a_process_that_stands_still_shows_where(tmp_path: Path, stopped: bool) -> None:
    """Stopped: by its last heartbeat. With a heartbeat that stands still too: by its stacks of this moment."""
    doctor = Doctor(tmp_path, stall_seconds=2.0 if stopped else 7.0)
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path), "0.1" if stopped else "900"])
    try:
        doctor.begin(1, {0: process.pid})
        deadline = time.monotonic() + 60
        while "deeply_asleep" not in _text(heartbeat_file(tmp_path, 0)) and time.monotonic() < deadline:
            if not stopped and heartbeat_file(tmp_path, 0).exists():
                break
            time.sleep(0.05)
        if stopped:
            process.send_signal(signal.SIGSTOP)
        told = look_until_told(doctor, 30)
    finally:
        process.kill()
        process.wait()
    assert told is not None
    assert "deeply_asleep" in told
    assert ("is stopped (kill -CONT" if stopped else "its threads now:") in told


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def test_the_state_of_a_process() -> None:
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while process_state(process.pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process_state(process.pid) == "T"
    process.kill()
    process.wait()
    assert process_state(process.pid) is None


def test_a_heartbeat_is_whole_and_costs_next_to_nothing(tmp_path: Path) -> None:
    pulse = Pulse()
    with Heartbeat(pulse, tmp_path, 3, every_seconds=0.05) as heart:
        with pulse.during("forward"):
            time.sleep(0.3)
            content = json.loads(heartbeat_file(tmp_path, 3).read_text("utf-8"))
        began = time.process_time()
        for _ in range(20):
            heart.write()
        each = (time.process_time() - began) / 20
    assert (content["rank"], content["doing"], content["pid"]) == (3, "forward", os.getpid())
    assert each < 0.005, "of a second: under half a percent"


def test_an_activity_that_fails_stays_what_the_worker_does() -> None:
    pulse = Pulse()
    with pytest.raises(ZeroDivisionError), pulse.during("update"):
        1 / 0  # noqa: B018
    assert pulse.doing == "update"
    with pulse.during("forward"):
        assert pulse.doing == "forward"
    assert pulse.doing == "update"


def test_lost_connections_are_told_from_their_cause(tmp_path: Path) -> None:
    found = Failures(tmp_path)
    failures.leave(tmp_path, 4, Pulse(), ValueError("of the past"))
    found.begin()
    failures.leave(tmp_path, 0, Pulse(), RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"))
    assert found.cause() is None
    pulse = Pulse()
    pulse.stepped(12)
    failures.leave(tmp_path, 1, pulse, KeyError("column"))
    cause = found.cause()
    assert cause is not None
    assert str(cause) == "worker 1 failed after step 12 (data) with KeyError: 'column'"
    assert "KeyError" in Path(cause.traceback).read_text("utf-8")
    for _ in range(3):
        assert not found.repeats
        found.remember(cause)
    assert found.repeats
    found.remember(None)
    assert not found.repeats


def test_what_says_that_a_connection_was_lost() -> None:
    import torch.distributed as dist

    assert says_lost(dist.DistNetworkError("failed to recv"))
    assert says_lost(RuntimeError("Timed out waiting 60000ms for recv operation to complete"))
    assert not says_lost(ValueError("a shape"))
    assert not says_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
