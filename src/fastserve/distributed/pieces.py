"""The files of a checkpoint: `worker-N.safetensors` with what worker N wrote, `state.json` that says what is where.

A tensor lies in one piece, or in several (a shard of each worker). What belongs to one worker alone is in its file too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastserve import files
from fastserve.distributed.tree import Tree, Where, places
from fastserve.errors import BundleError

FORMAT = 1
STATE = "state.json"
TREE = "tree"
"""Where a worker's file has the tree of its own state, in its header."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types of numbers by the names that safetensors gives them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def worker_file(worker: int) -> str:
    return f"worker-{worker:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor: where it begins, how large it is, and whose file has it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    worker: int

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, start + size) for start, size in zip(self.offsets, self.sizes, strict=True))


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """What a checkpoint has of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def meta(self) -> Tensor:
        """Its shape and type, without values."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def key(name: str, offsets: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """The name of a piece in its file: that of the tensor, with its offsets where it is not the whole tensor."""
    return name if sizes == shape else f"{name}@{','.join(map(str, offsets))}"


@dataclass(frozen=True, slots=True)
class Index:
    """The content of `state.json`."""

    step: int
    workers: int
    tree: Tree
    tensors: Mapping[str, SavedTensor]

    @property
    def files(self) -> list[str]:
        return [STATE, *(worker_file(worker) for worker in range(self.workers))]

    def write(self, folder: Path) -> None:
        tensors = {
            name: [_NAMES[saved.dtype], saved.shape, [[p.offsets, p.sizes, p.worker] for p in saved.pieces]]
            for name, saved in sorted(self.tensors.items())
        }
        content = {"format": FORMAT, "step": self.step, "workers": self.workers, "tree": self.tree, "tensors": tensors}
        files.write_text(folder / STATE, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Index:
        path = folder / STATE
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != FORMAT:
                raise BundleError(f"{path} has format {content['format']}; this version reads {FORMAT}")
            tensors = {name: _saved(*entry) for name, entry in content["tensors"].items()}
            return cls(content["step"], content["workers"], content["tree"], tensors)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path} cannot be read as a checkpoint of format {FORMAT}: {error!r}") from error


def _saved(dtype: str, shape: list[int], pieces: list[Any]) -> SavedTensor:
    return SavedTensor(DTYPES[dtype], tuple(shape), tuple(Piece(tuple(o), tuple(s), worker) for o, s, worker in pieces))


def whole(tensors: Mapping[str, Tensor]) -> dict[str, SavedTensor]:
    """The entries of tensors that worker 0 writes in one piece each."""
    return {
        name: SavedTensor(tensor.dtype, tuple(tensor.shape), (Piece((0,) * tensor.dim(), tuple(tensor.shape), 0),))
        for name, tensor in tensors.items()
    }


def write_pieces(path: Path, tensors: Mapping[str, Tensor], own: Tree) -> str:
    """Write a new safetensors file of contiguous tensors on the CPU, flush it, and return its SHA-256.

    Written here rather than by the library, for which a full disk is a text without its number, and which would have
    the file read again for the checksum. Files and hashes let other threads run meanwhile.
    """
    digest = hashlib.sha256()
    with files.disk_errors(f"writing {path}"), open(path, "xb") as file:
        for block in _blocks(tensors, own):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _blocks(tensors: Mapping[str, Tensor], own: Tree) -> Iterator[memoryview | bytes]:
    """The file in parts: header length, header, values. Wide types come first, so that all are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {TREE: json.dumps(own, ensure_ascii=False)}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + math.prod(tensor.shape) * tensor.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header, ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    yield len(content).to_bytes(8, "little")
    yield content
    for _, tensor in ordered:
        yield from _values(tensor)


def _values(tensor: Tensor, block: int = 16 << 20) -> Iterator[memoryview]:
    data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(data), block):
        yield data[start : start + block]


def read_own(
    folder: Path, worker: int, kept: Callable[[Where, Tensor], Tensor] = lambda where, value: value.clone()
) -> tuple[Tree, dict[str, Tensor]]:
    """What belongs to one worker alone: its tree and the tensors that the tree names.

    kept: what to keep of a tensor, given where in the tree it is; it lies in the file, which is closed afterwards.
    """
    from safetensors import safe_open

    with safe_open(folder / worker_file(worker), "pt") as file:
        tree = json.loads(file.metadata()[TREE])
        return tree, {name: kept(where, file.get_tensor(name)) for name, where in places(tree)}


def read_whole(folder: Path, index: Index, targets: Mapping[str, Tensor]) -> None:
    """Fill the targets with all pieces of their tensors."""
    from safetensors import safe_open

    for worker in range(index.workers):
        with safe_open(folder / worker_file(worker), "pt") as file:
            for name, target in targets.items():
                saved = index.tensors[name]
                for piece in saved.pieces:
                    if piece.worker == worker:
                        values = file.get_tensor(key(name, piece.offsets, piece.sizes, saved.shape))
                        target.detach()[piece.slices].copy_(values)
