"""One function over many tasks in several processes: results in order, bounded memory, and never a hang.

The processes are forked, so they begin at once with everything the function holds, and a user's script needs no
`if __name__ == "__main__"`. They run Python, numpy and rjieba only; no torch, whose threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from fastserve.errors import WorkError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 3  # tasks given out for each process: one in work, one waiting, one finished


def spread(function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int) -> Iterator[Result]:
    """`map(function, tasks)` in `workers` processes; with one, in this process. Tasks and results are pickled.

    WorkError where a process dies, with what it was; an exception of the function is raised here.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), initializer=_begin, initargs=(function, os.getpid())
    )
    pending: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            with _fork_warnings_ignored() if not pending else contextlib.nullcontext():
                pending.append(executor.submit(_run, task))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise WorkError(
            "a process that encodes texts died: it was killed, most often because memory ran out. "
            "Run it again, with fewer workers or shorter texts"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _fork_warnings_ignored() -> Iterator[None]:
    """Python 3.12 warns of every fork beside threads; the module's docstring says why this one is safe."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        yield


class _Worker:
    """What a worker process was started with; never set in the process that starts them."""

    function: Callable[[Any], Any]


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    _Worker.function = staticmethod(function)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run(task: Any) -> Any:
    return _Worker.function(task)
