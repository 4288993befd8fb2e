"""Encoded rows on the disk, mapped into memory: a data set may be larger than the memory.

A store is a folder of plain arrays without headers (little-endian, as numpy writes them) and a store.json that gives
their types and counts, and a SHA-256 of each:

    tokens.values.bin    int32 (N,)          tokens.offsets.bin   int64 (rows + 1,)   tokens.weights.bin  float32 (N,)
    targets.bin          int64 (rows,) or float32 (rows, classes)                     rows.bin            int64 (rows,)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastserve.errors import StorageError
from fastserve.files import disk_errors, new_folder, write_json
from fastserve.types import Batch, Encoded, IntArray, LongArray, Ragged

_MANIFEST = "store.json"
_FORMAT = 1
_RESIDENT = 768 << 20
_AT_ONCE = 1 << 20
_FOLIO = 2 << 20  # the system may map so much around each page that is touched

Array = npt.NDArray[Any]


@contextlib.contextmanager
def write_store(folder: Path) -> Iterator[StoreWriter]:
    """A writer whose rows appear at `folder` as a whole store when the block ends, or not at all."""
    with new_folder(folder) as temporary, contextlib.ExitStack() as stack:
        writer = StoreWriter(temporary, stack)
        yield writer
        with disk_errors(f"writing {folder}"):
            writer.finish()
            stack.close()


@dataclass
class _Column:
    """One growing file of numbers of one type and row shape."""

    file: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    count: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def append(self, values: Array) -> None:
        data = np.ascontiguousarray(values, self.dtype)
        self.file.write(data.data)
        self.digest.update(data.data)
        self.count += len(data)

    def to_json(self) -> dict[str, Any]:
        return {"dtype": self.dtype.str, "shape": [self.count, *self.shape], "sha256": self.digest.hexdigest()}


@dataclass
class StoreWriter:
    """Appends blocks of encoded rows; use `write_store`, which finishes it."""

    folder: Path
    stack: contextlib.ExitStack
    _columns: dict[str, _Column] = field(default_factory=dict)
    _ends: dict[str, int] = field(default_factory=dict)
    _encodings: tuple[str, ...] | None = None
    rows: int = 0

    def append(self, encoded: Encoded, targets: Array, rows: LongArray) -> None:
        """Add rows: every encoding, `targets` (int64 (B,) or float32 (B, C)) and `rows` (their numbers in the file)."""
        sizes = {name: len(ragged) for name, ragged in encoded.items()} | {"targets": len(targets), "rows": len(rows)}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"a block must have as many rows in every part, found {sizes}")
        if self._encodings is None:
            self._encodings = tuple(encoded)
        if self._encodings != tuple(encoded):
            raise ValueError(f"every block must have the encodings {self._encodings}, found {tuple(encoded)}")
        for name, ragged in encoded.items():
            self._append_ragged(name, ragged)
        self._column("targets", targets.dtype, targets.shape[1:]).append(targets)
        self._column("rows", np.dtype(np.int64), ()).append(rows)
        self.rows += len(rows)

    def _append_ragged(self, name: str, ragged: Ragged) -> None:
        end = self._ends.get(name)
        offsets = self._column(f"{name}.offsets", np.dtype(np.int64), ())
        if end is None:
            offsets.append(np.zeros(1, np.int64))
        offsets.append(ragged.offsets[1:] + (end or 0))
        self._ends[name] = (end or 0) + int(ragged.offsets[-1])
        self._column(f"{name}.values", np.dtype(np.int32), ()).append(ragged.values)
        if ragged.weights is not None:
            self._column(f"{name}.weights", np.dtype(np.float32), ()).append(ragged.weights)

    def _column(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> _Column:
        column = self._columns.get(name)
        if column is None:
            file = self.stack.enter_context((self.folder / f"{name}.bin").open("wb"))
            column = self._columns[name] = _Column(file, dtype, shape)
        if (column.dtype, column.shape) != (dtype, shape):
            raise ValueError(f"{name} began as {column.dtype} {column.shape}, this block has {dtype} {shape}")
        return column

    def finish(self) -> None:
        """Write the manifest; the folder is a store from then on."""
        for name, end in self._ends.items():
            weights = self._columns.get(f"{name}.weights")
            if weights is not None and weights.count != end:
                raise ValueError(f"encoding {name} has weights in some blocks and not in others")
        arrays = {name: column.to_json() for name, column in self._columns.items()}
        content = {"format": _FORMAT, "rows": self.rows, "encodings": list(self._encodings or ()), "arrays": arrays}
        write_json(self.folder / _MANIFEST, content)


@dataclass(frozen=True)
class _Mapped:
    """A file of numbers in memory as far as it was touched."""

    array: Array
    memory: mmap.mmap | None

    def release(self) -> None:
        """Forget the pages: they stay in the system's cache, and no longer count as this process's memory."""
        if self.memory is not None:
            self.memory.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Store:
    """Encoded rows, or a part of them (`subset`), read in any order.

    resident_bytes: how much of mapped files may count as this process's memory before the store's are given back.
    """

    folder: Path
    manifest: Mapping[str, Any]
    arrays: Mapping[str, _Mapped]
    chosen: LongArray | None = None
    resident_bytes: int = _RESIDENT

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Map a store. StorageError when it is absent, of another format, or a file has not its size."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise StorageError(f"{folder} is no store of encoded rows: it has no {_MANIFEST}") from None
        except ValueError as error:
            raise StorageError(f"{folder / _MANIFEST} is damaged: {error}; remove the folder and run again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise StorageError(f"{folder} is a store of another format; remove the folder and run again")
        arrays = {name: _map(folder / f"{name}.bin", entry) for name, entry in manifest["arrays"].items()}
        return cls(folder, manifest, arrays)

    def __len__(self) -> int:
        return int(self.manifest["rows"]) if self.chosen is None else len(self.chosen)

    @property
    def encodings(self) -> tuple[str, ...]:
        return tuple(self.manifest["encodings"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content of all rows, chosen or not."""
        sums = {name: entry["sha256"] for name, entry in sorted(self.manifest["arrays"].items())}
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()

    @property
    def targets(self) -> Array:
        """int64 (rows,) or float32 (rows, classes)."""
        return self._rows_of("targets")

    @property
    def row_numbers(self) -> LongArray:
        """int64 (rows,): where each row stood in its file."""
        return self._rows_of("rows")

    def _rows_of(self, name: str) -> Array:
        if name not in self.arrays:
            return np.zeros(0, np.int64)
        array = self.arrays[name].array
        return array if self.chosen is None else array[self.chosen]

    def lengths(self, encoding: str) -> IntArray:
        """int32 (rows,): values of each row in one encoding."""
        offsets = self._ragged(encoding).offsets
        lengths = np.empty(len(self), np.int32)
        for start in range(0, len(self), _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, len(self)))
            at = np.arange(some.start, some.stop) if self.chosen is None else self.chosen[some]
            lengths[some] = offsets[at + 1] - offsets[at]
        return lengths

    def batch(self, rows: LongArray) -> Batch:
        """The given rows (positions in this store or subset) copied out, in the given order."""
        at = rows if self.chosen is None else self.chosen[rows]
        if self._fits:
            inputs = {name: self._ragged(name).take(at) for name in self.encodings}
        else:
            inputs = {name: self._take_in_pieces(name, at) for name in self.encodings}
        return Batch(rows, inputs, self.arrays["targets"].array[at])

    @property
    def _fits(self) -> bool:
        return sum(mapped.array.nbytes for mapped in self.arrays.values()) <= self.resident_bytes

    def _take_in_pieces(self, encoding: str, at: LongArray) -> Ragged:
        """As `take`, but pages are given back on the way: scattered rows soon touch the whole file."""
        step = max(self.resident_bytes // _FOLIO, 1)
        pieces = []
        for start in range(0, max(len(at), 1), step):
            pieces.append(self._ragged(encoding).take(at[start : start + step]))
            self._give_back()
        return Ragged.concatenate(pieces)

    def _give_back(self) -> None:
        """Let go of pages that were read, where there are too many."""
        if not self._fits and _mapped_bytes() > self.resident_bytes:
            for mapped in self.arrays.values():
                mapped.release()

    def in_order(self, rows: int) -> Iterator[Batch]:
        """All rows, `rows` at a time, in their order; without copies where this is the whole store."""
        for start in range(0, len(self), rows):
            chosen = np.arange(start, min(start + rows, len(self)))
            if self.chosen is None:
                inputs = {name: self._ragged(name).between(start, chosen[-1] + 1) for name in self.encodings}
                yield Batch(chosen, inputs, self.arrays["targets"].array[start : chosen[-1] + 1])
            else:
                yield self.batch(chosen)
            self._give_back()

    def subset(self, rows: LongArray) -> Store:
        """Only the given rows, numbered anew from 0; nothing is copied."""
        chosen = np.asarray(rows, np.int64)
        return replace(self, chosen=chosen if self.chosen is None else self.chosen[chosen])

    def verify(self) -> list[str]:
        """What is damaged, one sentence a file; an empty list means that the store is whole."""
        from fastserve.files import sha256

        entries = self.manifest["arrays"].items()
        return [f"{name}.bin is damaged" for name, e in entries if sha256(self.folder / f"{name}.bin") != e["sha256"]]

    def _ragged(self, encoding: str) -> Ragged:
        weights = self.arrays.get(f"{encoding}.weights")
        return Ragged(
            self.arrays[f"{encoding}.values"].array,
            self.arrays[f"{encoding}.offsets"].array,
            None if weights is None else weights.array,
        )


def _mapped_bytes() -> float:
    """Pages of files that count as this process's memory; where the system does not tell, as many as may be."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[2]) * mmap.PAGESIZE
    except OSError:
        return float("inf")


def _map(path: Path, entry: Mapping[str, Any]) -> _Mapped:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    expected = dtype.itemsize * int(np.prod(shape))
    try:
        found = os.path.getsize(path)
    except FileNotFoundError:
        raise StorageError(f"{path} is missing; remove the folder and run again") from None
    if found != expected:
        raise StorageError(f"{path} is damaged: it has {found:,} bytes, expected {expected:,}; run again without it")
    if not expected:
        return _Mapped(np.zeros(shape, dtype), None)
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _Mapped(np.frombuffer(memory, dtype).reshape(shape), memory)
