"""Peak memory of a process and all its descendants together, sampled from the proportional sizes that Linux keeps.

Anonymous memory (heaps, stacks, shared memory) is what the processes need. Pages of mapped files are counted apart:
they are the system's cache, which it takes back when it needs the memory. Pages that several processes share, as after
a fork, count once, divided among them.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Memory:
    """Bytes. anonymous: heaps, stacks, shared memory and what of them is swapped out; mapped: pages of files."""

    anonymous: int = 0
    mapped: int = 0

    @property
    def total(self) -> int:
        return self.anonymous + self.mapped

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.anonymous + other.anonymous, self.mapped + other.mapped)


def of_process(process: int) -> Memory:
    """Nothing where the process has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines()[1:]
    except OSError:
        return Memory()
    found = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    anonymous = found["Pss_Anon"] + found["Pss_Shmem"] + found.get("SwapPss", 0)
    return Memory(anonymous, found["Pss_File"])


def of_tree(process: int) -> Memory:
    """A process and its descendants."""
    return sum(map(of_tree, children(process)), of_process(process))


def children(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, task.read_text("ascii").split())
        except OSError:
            continue
    return found


class Peak:
    """While entered, samples a tree of processes. The peaks need not have been at the same moment.

    anonymous, mapped, total: bytes. samples: (seconds since the start, what was found), every one.
    """

    def __init__(self, process: int, seconds: float = 0.5) -> None:
        self.process, self.seconds = process, seconds
        self.samples: list[tuple[float, Memory]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def anonymous(self) -> int:
        return max((memory.anonymous for _, memory in self.samples), default=0)

    @property
    def mapped(self) -> int:
        return max((memory.mapped for _, memory in self.samples), default=0)

    @property
    def total(self) -> int:
        return max((memory.total for _, memory in self.samples), default=0)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        start = time.monotonic()
        while not self._over.wait(self.seconds):
            self.samples.append((time.monotonic() - start, of_tree(self.process)))
