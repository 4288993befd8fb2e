"""The workers of a run and what they say to each other. A world of one needs no torch.distributed."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from fastserve.distributed.pulse import EXCHANGE, During, Pulse
from fastserve.distributed.traffic import Traffic
from fastserve.types import FloatArray, LongArray

Item = TypeVar("Item")
Method = TypeVar("Method", bound=Callable[..., Any])

LEAVE_SECONDS = 24 * 3600.0


def _named(name: str) -> Callable[[Method], Method]:
    """A method of World that is an exchange of that name."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def exchange(world: World, *rest: Any, **named: Any) -> Any:
            with world.doing(name):
                return method(world, *rest, **named)

        return cast(Method, exchange)

    return decorate


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker computes at once of a step.

    rows: int64 (B,), never empty. whole: rows of the step on all workers. share: of what counts in the step, that which
    counts in these rows (a loss is the mean over what counts: rows, or tokens). within: the same, of this worker's.

    A share of 0 fills up: another worker counts the row, or nothing in it counts; it is computed, so that the worker
    takes its turn in every exchange, and its gradient counts for nothing.
    """

    rows: LongArray
    whole: int
    share: float = 1.0
    within: float = 1.0
    own: int = 0
    """Rows that this worker has of the step, where it computes them in several parts."""

    @property
    def counted(self) -> bool:
        return self.share > 0


@dataclass(frozen=True, slots=True)
class World:
    """Who this process is among the workers of a run. Every method but `part` must be called by all of them alike."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """What this worker computes on."""
    pulse: Pulse = field(default_factory=Pulse, repr=False, compare=False)
    """What this worker does right now."""
    timeout_seconds: float = 60.0
    """How long an exchange may last."""
    traffic: Traffic = field(init=False, compare=False)
    """What this worker has sent so far."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "traffic", Traffic(self.size, gloo=self.device.type == "cpu"))

    @classmethod
    def join(cls, device: torch.device, timeout_seconds: float, pulse: Pulse | None = None) -> World:
        """Meet the other workers as the environment says (the variables of torchrun), unless whoever started this
        process has let them meet. `leave` when done.

        An exchange that lasts longer than `timeout_seconds` fails.
        """
        import torch.distributed as dist

        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        world = cls(rank, size, local_rank, local_size, device, pulse or Pulse(), timeout_seconds)
        with world.doing("meeting"):
            if not dist.is_initialized():
                dist.init_process_group(_backend(device), timeout=timedelta(seconds=timeout_seconds))
        return world

    def leave(self) -> None:
        """Go apart, after everybody is done: the leader may be long about the report."""
        if self.size > 1:
            import torch.distributed as dist
            from torch.distributed.distributed_c10d import _set_pg_timeout

            _set_pg_timeout(timedelta(seconds=LEAVE_SECONDS))
            with self.doing("end"):
                dist.barrier()
            dist.destroy_process_group()

    def doing(self, name: str) -> During:
        """While entered, this worker is in an exchange in which the workers wait for each other: nearly free."""
        return self.pulse.during(EXCHANGE + name)

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the worker that writes and speaks for all."""
        return self.rank == 0

    def part(self, rows: LongArray, counts: FloatArray | None = None) -> Part:
        """This worker's part of a step; over all workers every row is counted once. Like lengths go to all alike.

        counts: float (B,), how much counts in each row; without it each row counts the same.
        """
        mine = rows[self.rank :: self.size]
        if not len(mine):
            return Part(rows[:1], len(rows), share=0.0, within=0.0)
        if counts is None:
            return Part(mine, len(rows), len(mine) / len(rows))
        whole = float(counts.sum(dtype=np.float64))
        return Part(
            mine, len(rows), float(counts[self.rank :: self.size].sum(dtype=np.float64)) / whole if whole else 0.0
        )

    def turns(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """This worker's items, as many on every worker; False with one that fills up and does not count."""
        for start in range(0, len(items), self.size):
            place = start + self.rank
            yield items[min(place, len(items) - 1)], place < len(items)

    @_named("gather")
    def gather(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The arrays (N_rank, ...) of all workers, one behind the other in the order of ranks, on every worker."""
        if self.alone:
            return array
        import torch.distributed as dist

        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(array)
        dist.all_reduce(counts)
        longest = int(counts.max())
        padded = np.zeros((longest, *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        found = [torch.empty(padded.shape, dtype=torch.from_numpy(padded).dtype) for _ in range(self.size)]
        dist.all_gather(found, torch.from_numpy(padded))
        self.traffic.gathered("results", padded.nbytes)
        return np.concatenate([part.numpy()[:count] for part, count in zip(found, counts.tolist(), strict=True)])

    @_named("told")
    def told(self, value: Any) -> Any:
        """The leader's value (what JSON can hold) on every worker."""
        if self.alone:
            return value
        import torch.distributed as dist

        text = torch.frombuffer(bytearray(json.dumps(value if self.leads else None).encode()), dtype=torch.uint8)
        size = torch.tensor([len(text)])
        dist.broadcast(size, 0)
        text = text if self.leads else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(text, 0)
        return json.loads(bytes(text.numpy()))

    @_named("most")
    def most(self, values: Sequence[float]) -> list[float]:
        """Of each value the largest that a worker has, on every worker."""
        if self.alone:
            return list(values)
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return cast(list[float], found.tolist())

    def after_leader(self, work: Callable[[], None]) -> None:
        """Let the leader do what all others then find done (a file, say)."""
        if self.leads:
            work()
        self.barrier()

    @_named("barrier")
    def barrier(self) -> None:
        """Wait until every worker is here."""
        if not self.alone:
            import torch.distributed as dist

            dist.barrier()


ALONE = World()


@contextmanager
def alone_in_group(device: torch.device) -> Iterator[None]:
    """While entered, this process is a group of its own: what needs a group works without other workers."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    dist.init_process_group(_backend(device), store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
