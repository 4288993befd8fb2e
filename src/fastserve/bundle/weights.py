"""The weights file in and out, without torch unless the tensors are torch's."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def write_weights(path: Path, weights: Mapping[str, Array | Tensor]) -> None:
    """Write a safetensors file. torch tensors keep their type (bfloat16 too); shared ones are written apart."""
    arrays = {name: value for name, value in weights.items() if isinstance(value, np.ndarray)}
    tensors = {name: value for name, value in weights.items() if not isinstance(value, np.ndarray)}
    if not tensors:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        return
    import torch
    from safetensors.torch import save_file as save_tensors

    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    own.update({name: torch.from_numpy(np.ascontiguousarray(array).copy()) for name, array in arrays.items()})
    save_tensors(own, path, {"format": "pt"})  # without which transformers does not load the file


def read_weights(path: Path) -> dict[str, Array]:
    """Tensors by name as views into the mapped file: nothing is copied, and processes share the pages until one
    writes to them. Only bfloat16, which numpy lacks, becomes float32 (with the same values)."""
    return dict(open_weights(path))


class MappedWeights(Mapping[str, Array]):
    """Tensors of a mapped file, each read when it is asked for. header: by name what safetensors says of a tensor."""

    def __init__(self, path: Path, mapped: mmap.mmap, start: int, header: Mapping[str, Any]) -> None:
        self._path, self._mapped, self._start, self._header = path, mapped, start, header

    def __getitem__(self, name: str) -> Array:
        return _view(self._mapped, self._start, self._header[name], f"{self._path}: {name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._header[name]["shape"])


def open_weights(path: Path) -> MappedWeights:
    """What `read_weights` gives, a tensor at a time."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):  # the library checks header, offsets and size; after it they can be trusted
            mapped = _map(path)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; publish or import the model again") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}; publish or import the model again") from None
    start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:start])
    header.pop("__metadata__", None)
    return MappedWeights(path, mapped, start, header)


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _view(mapped: mmap.mmap, start: int, entry: Mapping[str, Any], where: str) -> Array:
    begin, end = entry["data_offsets"]
    if entry["dtype"] == "BF16":
        halves = np.frombuffer(mapped, np.uint16, (end - begin) // 2, start + begin)
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    if entry["dtype"] not in _DTYPES:
        raise BundleError(f"{where} has type {entry['dtype']}; expected BF16, {', '.join(_DTYPES)}")
    kind = np.dtype(_DTYPES[entry["dtype"]])
    return np.frombuffer(mapped, kind, (end - begin) // kind.itemsize, start + begin).reshape(entry["shape"])
