"""Files that are either whole or absent: atomic writes, checksums, locks.

A reader never sees half a file, also after `kill -9` or a power cut: content is written beside its place, flushed to
the disk, and renamed over it, and the rename itself is flushed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from fastserve.errors import BundleError, StorageError

SUMS = "SHA256SUMS"
_TEMPORARY = ".tmp-"
_BLOCK = 1 << 20


def sync_folder(folder: Path) -> None:
    """Flush the names inside `folder` (new, renamed, removed) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{doing}: the disk is full; nothing was replaced. Free space and run it again"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            where = error.filename or "the folder"
            raise StorageError(
                f"{doing}: no permission to write {where}; choose another folder or change its owner"
            ) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically."""
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that replaces `path` at the end, or leaves it as it was on an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(f"writing {path}"):
        descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Build a folder that appears at `path` whole or not at all.

    Yields a temporary folder beside `path`. At the end its files are flushed and it is renamed to `path`, which must
    not exist by then (StorageError otherwise). On an exception it is removed.
    """
    with disk_errors(f"writing {path}"), unfinished_folder(path.parent) as temporary:
        yield temporary
        sync_tree(temporary)
        finish_folder(temporary, path)


@contextlib.contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent` to be filled and renamed; what is still there at the end is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
    try:
        os.chmod(temporary, 0o755)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish_folder(temporary: Path, path: Path) -> None:
    """Rename a folder whose content was flushed to `path`, which must not exist, and flush the rename."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise StorageError(
                f"{path} exists already and is not replaced; remove it or choose another name"
            ) from error
        raise
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def remove_leftovers(folder: Path, *, older_than_seconds: float = 3600.0) -> None:
    """Remove what a killed writer left in `folder`; younger ones may belong to a living writer."""
    if not folder.is_dir():
        return
    for path in folder.glob(_TEMPORARY + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than_seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_leftover(path: Path) -> bool:
    """Whether `path` is an unfinished file or folder of this module."""
    return path.name.startswith(_TEMPORARY)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write SHA256SUMS (the format of `sha256sum`) over every other file below `folder`; `known` ones are not read."""
    known = known or {}
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    write_text(folder / SUMS, "".join(f"{known.get(name) or sha256(folder / name)}  {name}\n" for name in names))


def read_sums(folder: Path) -> dict[str, str]:
    """File name to checksum, as SHA256SUMS says."""
    path = folder / SUMS
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {SUMS}: it is not a FastServe model folder, or its writing was cut short"
        ) from None
    except UnicodeDecodeError:
        raise BundleError(f"{path} is damaged: it is not text") from None
    sums = {}
    for number, line in enumerate(lines, start=1):
        checksum, separator, name = line.partition("  ")
        if not separator or len(checksum) != 64 or Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{path} line {number} is damaged: expected '<sha256>  <file>', found {line[:80]!r}")
        sums[name] = checksum
    return sums


def verify_sums(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What differs from SHA256SUMS, one sentence a file; an empty list means that the folder is whole.

    names: the files to look at, where not all.
    """
    faults = []
    sums = read_sums(folder)
    for name in sums if names is None else [name for name in names if name in sums]:
        expected = sums[name]
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256(path) != expected:
            faults.append(f"{name} is damaged (its checksum differs from {SUMS})")
    return faults


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file against other processes, or, shared, against those who want it alone; whether that went."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def lock(path: Path, *, timeout_seconds: float = 30.0) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system releases it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + timeout_seconds
        while not try_lock(file):
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{path} is held by another process since over {timeout_seconds:.0f} s; wait for it or end it"
                )
            time.sleep(0.02)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
