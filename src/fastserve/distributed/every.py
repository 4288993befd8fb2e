"""Something that a thread does again and again beside the work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class Every:
    """While entered, `work` is done at once and then every so many seconds, in a thread."""

    def __init__(self, seconds: float, work: Callable[[], None], name: str) -> None:
        self.seconds, self.work = seconds, work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Every:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self.work()
        while not self._ended.wait(self.seconds):
            self.work()
