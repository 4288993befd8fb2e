"""Sums over processes of one machine by memory that they share: microseconds, where a socket takes a millisecond.

A step of a decoder needs two sums a layer of few numbers each, so that what counts is how soon they are there.
"""

from __future__ import annotations

import mmap
import os
import platform
import time

import torch
from torch import Tensor

MOST = 1 << 20
"""Numbers that are summed at once."""
_LINE = 64
"""Bytes of a line of the processor's cache: what one process writes lies in no other's."""
_EAGER, _AWAKE = 2_000, 20_000
"""Looks at the others' progress before a process lets others have its core, and before it rests between them."""
_REST_SECONDS = 5e-5


def create(processes: int) -> int | None:
    """A descriptor of memory for so many processes, which is gone with the last of them; None where there is none.

    On processors that do not keep the order in which another one writes, numbers could be read before they are there.
    """
    if not hasattr(os, "memfd_create") or platform.machine() != "x86_64":
        return None
    file = os.memfd_create("sums")
    os.ftruncate(file, processes * (_LINE + 2 * 4 * MOST))
    return file


class MemorySums:
    """Of one process. file: from `create`, which it may close afterwards. All must ask for the same sums in order."""

    def __init__(self, file: int, rank: int, processes: int) -> None:
        self.rank, self.processes = rank, processes
        mapped = mmap.mmap(file, 0)
        self._rounds = memoryview(mapped)[: processes * _LINE].cast("q")
        """How many sums each process has given its part to, a line apart."""
        numbers = torch.frombuffer(mapped, dtype=torch.float32, offset=processes * _LINE)
        self._parts = numbers.view(2, processes, MOST)
        """Of even and of odd rounds: who gives to the next round has done with the one before."""
        self._round = 0

    def __call__(self, part: Tensor) -> Tensor:
        """The sum of all processes' parts, in float32, to the same bits in each of them."""
        own = part.float().reshape(-1)
        found = torch.empty_like(own)
        for start in range(0, len(own), MOST):
            self._sum(own[start : start + MOST], found[start : start + MOST])
        return found.view(part.shape).to(part.dtype)

    def _sum(self, own: Tensor, into: Tensor) -> None:
        self._round += 1
        parts = self._parts[self._round % 2, :, : len(own)]
        parts[self.rank] = own
        self._rounds[self.rank * _LINE // 8] = self._round
        for rank in range(self.processes):
            self._await(rank)
        torch.sum(parts, 0, out=into)

    def _await(self, rank: int) -> None:
        """Until a process has given its part. Where it has ended, this one is ended by who watches."""
        rounds, place, now, looks = self._rounds, rank * _LINE // 8, self._round, 0
        while rounds[place] < now:
            looks += 1
            if looks > _AWAKE:
                time.sleep(_REST_SECONDS)
            elif looks > _EAGER:
                os.sched_yield()
