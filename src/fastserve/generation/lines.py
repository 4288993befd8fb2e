"""Those who wait, in order of their ranks. No torch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from fastserve.generation.fairness import Shares
from fastserve.generation.job import Job

Standing = tuple[int, float, int]
"""Where a job stands in an order: the level of its key, its rank, and its id, so that no two stand in one place."""
Entry = tuple[Standing, Job]


class Line:
    """Jobs of one key, the lowest rank first. A job's rank is that of the moment when it was added."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, Job]] = []
        self._ranks: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, job: Job) -> bool:
        return job.id in self._ranks

    def add(self, job: Job) -> None:
        self._ranks[job.id] = job.rank
        insort(self.entries, (job.rank, job.id, job))

    def remove(self, job: Job) -> None:
        found = bisect_left(self.entries, (self._ranks.pop(job.id), job.id))
        del self.entries[found]

    def sort(self) -> None:
        """Ranks have changed."""
        self.entries = sorted((job.rank, job.id, job) for _, _, job in self.entries)
        self._ranks = {identity: rank for rank, identity, _ in self.entries}


class Lines:
    """A line for each key, read as one: a key that is ahead of others stands behind them."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._lines: dict[str, Line] = {}
        self.count = 0

    def __contains__(self, job: Job) -> bool:
        return job in self._lines.get(job.key, ())

    def add(self, job: Job) -> None:
        self._lines.setdefault(job.key, Line()).add(job)
        self.count += 1

    def remove(self, job: Job) -> None:
        line = self._lines[job.key]
        line.remove(job)
        self.count -= 1
        if not line:
            del self._lines[job.key]

    def jobs(self) -> Iterator[Job]:
        """All of them, in no particular order."""
        for line in self._lines.values():
            for _, _, job in line.entries:
                yield job

    def sort(self) -> None:
        for line in self._lines.values():
            line.sort()

    def ordered(self) -> Iterator[Entry]:
        """All of them in order; nobody may be added or removed meanwhile."""
        levels: dict[int, list[Line]] = {}
        for key, line in self._lines.items():
            levels.setdefault(self._shares.level(key), []).append(line)
        for level in sorted(levels):
            yield from _merged(level, levels[level])


def _merged(level: int, lines: list[Line]) -> Iterator[Entry]:
    if len(lines) == 1:
        for rank, identity, job in lines[0].entries:
            yield (level, rank, identity), job
        return
    heads = sorted((*line.entries[0], place) for place, line in enumerate(lines))
    nexts = [1] * len(lines)
    while heads:
        rank, identity, job, place = heads.pop(0)
        yield (level, rank, identity), job
        entries = lines[place].entries
        if nexts[place] < len(entries):
            insort(heads, (*entries[nexts[place]], place))
            nexts[place] += 1


def merge(first: Iterator[Entry] | list[Entry], second: Iterator[Entry]) -> Iterator[Entry]:
    """Two orders as one; of equal places `first` goes first."""
    first = iter(first)
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        if one[0][:2] <= other[0][:2]:
            yield one
            one = next(first, None)
        else:
            yield other
            other = next(second, None)
    if one is not None:
        yield one
        yield from first
    if other is not None:
        yield other
        yield from second
