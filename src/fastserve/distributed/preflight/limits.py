"""How long each step may last, in seconds. Whoever waits says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

STORE = 10.0
"""One exchange with the store of the meeting."""
CONNECT = 3.0
TRANSFER = 6.0
"""One measurement of a link, after it stands."""
MARK = 5.0
"""A file that another node wrote becomes visible: network file systems remember for some seconds what was absent."""
FAREWELL = 20.0
"""The host waits for the others to read the reports."""
SPARE = 10.0
READING_BYTES_PER_SECOND = 50e6
"""Data is read at least so fast."""


def reports(nodes: int, data_bytes: int, places: int = 0) -> float:
    """The longest time from the roster to the last report. places: others than the first where they would meet."""
    return places * CONNECT + SPARE + MARK + data_bytes / READING_BYTES_PER_SECOND + (nodes - 1) * (CONNECT + TRANSFER)


def within(seconds: float, work: Callable[[], Value]) -> Value:
    """What `work` gives; TimeoutError when that takes too long.

    For calls that may never come back: a store's client waits without limit for a host that was cut off. Such a call is
    left behind in a thread that does not keep the process alive.
    """
    results: list[Value] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]
