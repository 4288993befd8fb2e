"""Checkpoints of a run: written while training goes on, whole or absent, taken up by any number of workers."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastserve.distributed.pieces import Index, read_own, read_whole, whole, worker_file, write_pieces
from fastserve.distributed.places import Place
from fastserve.distributed.shelf import Shelf
from fastserve.distributed.snapshot import Snapshot, on_cpu
from fastserve.distributed.tree import Where, places, unpack
from fastserve.errors import TrainingError
from fastserve.log import warn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def own_group(timeout_seconds: float = 600.0) -> ProcessGroup | None:
    """A group of all workers that checkpoints have for themselves; None where this process is alone.

    The wait for the slowest writer counts against the timeout.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return None
    group: ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
    return group


class Checkpoints:
    """The checkpoints in a folder (on storage that all workers share). Every method is called by all workers alike.

    group: of all workers, used by nothing else, since it is spoken in while training goes on (`own_group`); None for a
    single process, which then needs no `torch.distributed`.
    """

    def __init__(self, folder: Path, group: ProcessGroup | None = None) -> None:
        self.shelf = Shelf(folder)
        self.group = group
        self._writing: _Writing | None = None
        self._latest: int | None = None

    def save(self, step: int, state: Any, *, own: Any = None) -> None:
        """Copy what there is to save and return; it is written meanwhile. Waits for the save before (see `wait`).

        state: nested dicts, lists, numbers, strings, None and tensors, alike on all workers but for the shards of a
        `DTensor`. own: such state that belongs to this worker alone.
        """
        self.wait()
        if step == self._latest:
            return
        snapshot = Snapshot.take(step, state, own, self._copied)
        self._latest = step
        self._writing = _Writing(lambda: self._write(snapshot), daemon=self.group is not None)
        self._writing.start()

    def wait(self) -> bool:
        """Until what is being written is there; whether there is one that this process wrote or loaded last.

        StorageError where it failed, on all workers; training can go on.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join()
            if writing.error is not None:
                self._latest = None
                raise writing.error
        return self._latest is not None

    def newest(self) -> Found | None:
        """The newest whole checkpoint, the same on all workers. Damaged ones are named in a warning and passed over."""
        self.wait()
        for step in self._from_first(self.shelf.steps()):
            faults = self._faults(step)
            if not faults:
                return Found(self, Index.read(self.shelf.place(step)))
            if self._worker == 0:
                warn(f"checkpoint {self.shelf.place(step).name} is damaged and is not used: {'; '.join(faults)}")
        return None

    def discard(self, step: int) -> bool:
        """Remove the checkpoint of this step, unless there is no other; whether it is gone, the same on all workers."""
        self.wait()
        gone = len(self._from_first(self.shelf.steps())) > 1
        if gone and self._worker == 0:
            self.shelf.drop(step)
        self._from_first([])  # nobody looks at the shelf before
        self._latest = None
        return gone

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        if self.group is None:
            return {name: on_cpu(tensor) for name, tensor in tensors.items()}
        from fastserve.distributed import sharded

        return sharded.copied(tensors, self._worker, self._workers)

    def _write(self, snapshot: Snapshot) -> None:
        if self.group is None:
            self._write_alone(snapshot)
        else:
            from fastserve.distributed import sharded

            sharded.save(self.shelf, snapshot, self.group)

    def _write_alone(self, snapshot: Snapshot) -> None:
        with self.shelf.unfinished() as temporary:
            file = worker_file(0)
            tensors = {**snapshot.tensors, **snapshot.own_tensors}
            checksum = write_pieces(temporary / file, tensors, snapshot.own_tree)
            index = Index(snapshot.step, 1, snapshot.tree, whole(snapshot.tensors))
            self.shelf.finish(temporary, index, {file: checksum})

    # The workers

    @property
    def _worker(self) -> int:
        return 0 if self.group is None else self.group.rank()

    @property
    def _workers(self) -> int:
        return 1 if self.group is None else self.group.size()

    def _from_first(self, value: list[int]) -> list[int]:
        if self.group is None:
            return value
        import torch.distributed as dist

        told = [value]
        dist.broadcast_object_list(told, group=self.group, group_src=0)
        return told[0]

    def _faults(self, step: int) -> list[str]:
        """What is wrong with a checkpoint: each worker looks at some of the files, and all learn what any found."""
        found = self.shelf.faults(step, self._worker, self._workers)
        if self.group is None:
            return found
        import torch.distributed as dist

        parts: list[list[str]] = [[] for _ in range(self._workers)]
        dist.all_gather_object(parts, found, group=self.group)
        return list(dict.fromkeys(fault for part in parts for fault in part))


@dataclass(frozen=True, slots=True)
class Found:
    """A whole checkpoint."""

    checkpoints: Checkpoints
    index: Index

    @property
    def step(self) -> int:
        return self.index.step

    @property
    def workers(self) -> int:
        """How many there were when it was saved."""
        return self.index.workers

    def load(self, *into: Place) -> tuple[Any, Any]:
        """The state, and this worker's own.

        Each tensor is read into the first that one of `into` gives for it, else into a new one on the CPU.
        Where the number of workers is another, worker i has what worker i modulo that number had as its own.
        """
        checkpoints, index = self.checkpoints, self.index
        targets = {name: self._target(name, where, into) for name, where in places(index.tree)}
        folder = checkpoints.shelf.place(index.step)
        if checkpoints.group is None:
            read_whole(folder, index, targets)
        else:
            from fastserve.distributed import sharded

            sharded.load(folder, index, targets, checkpoints.group)
        own_tree, own = read_own(folder, checkpoints._worker % index.workers)
        checkpoints._latest = index.step
        return unpack(index.tree, targets.__getitem__), unpack(own_tree, own.__getitem__)

    def of_first(self, *into: Place) -> Any:
        """What the first worker had as its own, on every worker; each tensor goes where `into` says, as in `load`."""
        tree, own = read_own(self.checkpoints.shelf.place(self.step), 0, functools.partial(_placed, into))
        return unpack(tree, own.__getitem__)

    def _target(self, name: str, where: Where, into: tuple[Place, ...]) -> Tensor:
        meta = self.index.tensors[name].meta
        target = _first(into, where, meta)
        if target is None:
            return torch.empty(meta.shape, dtype=meta.dtype)  # empty_like of a meta tensor imports for half a second
        if target.shape != meta.shape or target.dtype != meta.dtype:
            raise TrainingError(
                f"checkpoint {self.step} is of another network: {'/'.join(map(str, where))} is "
                f"{tuple(meta.shape)} {meta.dtype} in it and {tuple(target.shape)} {target.dtype} in this run"
            )
        return target


def _first(into: tuple[Place, ...], where: Where, meta: Tensor) -> Tensor | None:
    return next((found for place in into if (found := place(where, meta)) is not None), None)


def _placed(into: tuple[Place, ...], where: Where, value: Tensor) -> Tensor:
    """`value`, or the shard that is wanted of it."""
    target = _first(into, where, value.to("meta"))
    if target is None:
        return value.clone()
    if hasattr(target, "to_local"):
        from fastserve.distributed import sharded

        sharded.copy_shard(target, value)
    else:
        target.copy_(value)
    return target


class _Writing(threading.Thread):
    """A save that is under way.

    With others it is a daemon: where the run fails, the process must not wait for workers that are gone.
    """

    def __init__(self, work: Callable[[], None], *, daemon: bool) -> None:
        super().__init__(name="checkpoint", daemon=daemon)
        self.work = work
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error
