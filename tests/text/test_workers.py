"""Several processes: order, bounded memory, and no hang whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from fastserve.errors import DataError, WorkError
from fastserve.text.workers import spread


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return set(map(int, file.read().split()))


def test_results_come_in_order_from_other_processes() -> None:
    def work(number: int) -> tuple[int, int]:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number, os.getpid()

    results = list(spread(work, range(40), workers=2))
    assert [square for square, _ in results] == [number * number for number in range(40)]
    processes = {process for _, process in results}
    assert os.getpid() not in processes
    assert not processes & children()


def test_one_worker_is_this_process() -> None:
    assert list(spread(lambda _: os.getpid(), range(3), workers=1)) == [os.getpid()] * 3


def test_tasks_are_not_read_far_ahead() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(1_000):
            taken += 1
            yield number

    results = spread(abs, tasks(), workers=2)
    next(results)
    assert taken <= 10
    results.close()  # type: ignore[attr-defined]


def test_a_killed_worker_is_an_error_and_no_hang() -> None:
    def work(number: int) -> int:
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    before = children()
    with pytest.raises(WorkError, match="died"):
        list(spread(work, range(100), workers=2))
    assert children() <= before


def test_an_error_of_the_work_is_raised_here() -> None:
    def work(number: int) -> int:
        raise DataError(f"row {number} is wrong")

    with pytest.raises(DataError, match="row 0 is wrong"):
        list(spread(work, range(100), workers=2))


def test_threads_of_torch_do_not_matter() -> None:
    torch = pytest.importorskip("torch")
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            torch.ones(64, 64) @ torch.ones(64, 64)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert list(spread(abs, range(-8, 0), workers=2)) == [8, 7, 6, 5, 4, 3, 2, 1]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


SCRIPT = textwrap.dedent(
    """
    import signal
    import time
    from fastserve.text.workers import spread

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored

    def work(number):
        time.sleep(0.2)
        return number

    for result in spread(work, range(1000), workers=2):  # no `if __name__ == "__main__"`
        print(result, flush=True)
    """
)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_program(sent: signal.Signals) -> None:
    program = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    assert program.stdout.readline() == b"0\n"
    with open(f"/proc/{program.pid}/task/{program.pid}/children", encoding="ascii") as file:
        workers = [int(number) for number in file.read().split()]
    assert len(workers) == 2
    program.send_signal(sent)
    errors = program.communicate(timeout=20)[1].decode()
    assert program.returncode == -sent
    assert errors.count("Traceback") == (1 if sent == signal.SIGINT else 0), errors  # none of the workers'
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{worker}") for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if os.path.exists(f"/proc/{worker}")]


def test_a_reader_that_stops_early_leaves_no_process() -> None:
    before = children()
    results = spread(abs, range(1_000), workers=2)
    assert next(results) == 0
    assert len(children() - before) == 2
    results.close()  # type: ignore[attr-defined]
    assert children() <= before


def test_an_error_while_tasks_are_made_leaves_no_process() -> None:
    def tasks() -> Iterator[int]:
        yield from range(10)
        raise DataError("line 11 is no text")

    before = children()
    with pytest.raises(DataError, match="line 11"):
        list(spread(abs, tasks(), workers=2))
    assert children() <= before
