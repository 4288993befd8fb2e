"""Checkpoints of several workers by `torch.distributed.checkpoint`, which plans who writes and who reads what.

Plain tensors are alike on all workers, and one of these copies and writes each; of a `DTensor` every worker writes and
reads its shard, however many workers there were. What lies on the disk is described in `pieces`: nothing is a pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.futures import Future

from fastserve.distributed.pieces import Index, Piece, SavedTensor, key, worker_file, write_pieces
from fastserve.distributed.shelf import Shelf
from fastserve.distributed.snapshot import Snapshot, on_cpu
from fastserve.distributed.tree import places
from fastserve.errors import StorageError


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """This worker's box of a tensor, copied to the CPU; of the tensor itself no more than the shape is known."""

    values: Tensor
    offsets: torch.Size
    shape: torch.Size

    @classmethod
    def copied(cls, tensor: DTensor) -> Shard:
        boxes: Callable[[], list[ChunkStorageMetadata]] = tensor.__create_chunk_list__
        (chunk,) = boxes()
        return cls(on_cpu(tensor.to_local()), chunk.offsets, tensor.shape)

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        """Called by the planner of `torch.distributed.checkpoint`."""
        data = TensorWriteData(
            chunk=ChunkStorageMetadata(self.offsets, self.values.shape),
            properties=TensorProperties(dtype=self.values.dtype),
            size=self.shape,
        )
        return [WriteItem(MetadataIndex(name, self.offsets), WriteItemType.SHARD, tensor_data=data)]


def copy_shard(target: Tensor, value: Tensor) -> None:
    """Copy what belongs to this worker of `value`, which all workers have."""
    if isinstance(target, DTensor):
        shard = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
        target, value = target.to_local(), shard.to_local()
    target.copy_(value)


def copied(tensors: Mapping[str, Tensor], worker: int, workers: int) -> dict[str, Tensor | Shard]:
    """What this worker writes of the tensors, as they are now: its shards, and its turn of those that all have."""
    found: dict[str, Tensor | Shard] = {n: Shard.copied(t) for n, t in tensors.items() if isinstance(t, DTensor)}
    found |= {n: on_cpu(t) for n, t in _turn({n: t for n, t in tensors.items() if n not in found}, worker, workers)}
    return found


def _turn(tensors: Mapping[str, Tensor], worker: int, workers: int) -> Iterator[tuple[str, Tensor]]:
    """Of tensors that all workers have, those that this one writes: about as many bytes as any other."""
    loads = [0] * workers
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        least = loads.index(min(loads))
        loads[least] += tensor.nbytes
        if least == worker:
            yield name, tensor


def save(shelf: Shelf, snapshot: Snapshot, group: dist.ProcessGroup) -> None:
    """Write a checkpoint together with the other workers of `group`. All return, or all raise the same."""
    with contextlib.ExitStack() as stack, _plain_errors(f"the checkpoint of step {snapshot.step} was not written"):
        writer = PieceWriter(shelf, snapshot, dist.get_rank(group), stack)
        planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        state_dict_saver.save(dict(snapshot.tensors), storage_writer=writer, planner=planner, process_group=group)


def load(folder: Path, index: Index, targets: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
    """Fill the targets, of a `DTensor` this worker's shard, together with the other workers of `group`."""
    with _plain_errors(f"the checkpoint of step {index.step} was not read"):
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        reader = PieceReader(folder, index)
        state_dict_loader.load(dict(targets), storage_reader=reader, planner=planner, process_group=group)


@contextlib.contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """The error of the first worker that failed, instead of a collection of traces."""
    try:
        yield
    except CheckpointException as error:
        worker = min(error.failures)
        cause = error.failures[worker][0]
        if isinstance(cause, StorageError | OSError):
            raise StorageError(f"{what}; worker {worker}: {cause}") from cause
        raise cause from error


class PieceWriter(StorageWriter):
    """Each worker writes one file. Worker 0 makes the folder before, and the checkpoint of it once all have written."""

    def __init__(self, shelf: Shelf, snapshot: Snapshot, worker: int, stack: contextlib.ExitStack) -> None:
        self.shelf, self.snapshot, self.worker, self.stack = shelf, snapshot, worker, stack

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        return

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        return

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.temporary = self.stack.enter_context(self.shelf.unfinished())
        self.index = Index(self.snapshot.step, len(plans), self.snapshot.tree, _tensors(plans))
        self._check_alike()
        return [dataclasses.replace(plan, storage_data=str(self.temporary)) for plan in plans]

    def _check_alike(self) -> None:
        named = {name for name, _ in places(self.snapshot.tree)}
        if named != self.index.tensors.keys():
            apart = sorted(named.symmetric_difference(self.index.tensors))
            raise TypeError(f"workers want to save different state: {', '.join(apart[:5])} is not on all of them")

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        content = dict(self.snapshot.own_tensors)
        for item in plan.items:
            name = item.index.fqn
            value = self.snapshot.tensors[name]
            if isinstance(value, Shard):
                content[key(name, value.offsets, value.values.shape, value.shape)] = value.values
            else:
                content[name] = value
        file = worker_file(self.worker)
        checksum = write_pieces(Path(plan.storage_data) / file, content, self.snapshot.own_tree)
        return _done([WriteResult(MetadataIndex(file), 0, checksum)])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        sums = {result.index.fqn: result.storage_data for part in results for result in part}
        self.shelf.finish(self.temporary, self.index, sums)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _tensors(plans: list[SavePlan]) -> dict[str, SavedTensor]:
    """Which worker writes which piece of which tensor."""
    data: dict[str, TensorWriteData] = {}
    pieces: dict[str, list[Piece]] = {}
    for worker, plan in enumerate(plans):
        for item in plan.items:
            name, written = item.index.fqn, item.tensor_data
            if written is None:
                raise TypeError(f"{name} is not a tensor")
            data[name] = written
            box = Piece(tuple(written.chunk.offsets), tuple(written.chunk.sizes), worker)
            pieces.setdefault(name, []).append(box)
    return {n: SavedTensor(d.properties.dtype, tuple(d.size), tuple(pieces[n])) for n, d in data.items()}


class PieceReader(StorageReader):
    """Reads of every piece only what this worker needs."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        return

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata({name: _metadata(saved) for name, saved in self.index.tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        return

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for worker, items in self._by_file(plan).items():
            with safe_open(self.folder / worker_file(worker), "pt") as file:
                for item, name in items:
                    wanted = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
                    target = planner.resolve_tensor(item)
                    target.detach().copy_(file.get_slice(name)[wanted])
                    planner.commit_tensor(item, target)
        return _done(None)

    def _by_file(self, plan: LoadPlan) -> dict[int, list[tuple[ReadItem, str]]]:
        """What is to be read, with its name in the file, by the worker whose file has it."""
        found: dict[int, list[tuple[ReadItem, str]]] = {}
        boxes: dict[str, dict[tuple[int, ...], Piece]] = {}
        for item in plan.items:
            name = item.storage_index.fqn
            saved = self.index.tensors[name]
            if name not in boxes:
                boxes[name] = {piece.offsets: piece for piece in saved.pieces if 0 not in piece.sizes}
            piece = boxes[name][tuple(item.storage_index.offset or ())]
            found.setdefault(piece.worker, []).append((item, key(name, piece.offsets, piece.sizes, saved.shape)))
        return found

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _metadata(saved: SavedTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)) for piece in saved.pieces]
    return TensorStorageMetadata(TensorProperties(dtype=saved.dtype), torch.Size(saved.shape), chunks)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
