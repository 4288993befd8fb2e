"""Version folders on the disk: `models/NAME/1`, `2`, `3`, each whole or absent.

A version is filled in a temporary folder of the same file system, flushed, and renamed to the next free number under
the model's lock. Nothing in it depends on where it lives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastserve import files
from fastserve.errors import BundleError
from fastserve.registry.aliases import State, read_state
from fastserve.registry.names import Reference, is_name

LOCK = ".lock"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Version:
    """A published model folder."""

    name: str
    number: int
    path: Path

    @property
    def reference(self) -> str:
        return str(Reference(self.name, str(self.number)))


class Store:
    """The folder of all models: names to versions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Models with at least one version."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if is_name(path.name) and self.numbers(path.name))

    def numbers(self, name: str) -> list[int]:
        """Version numbers of `name`, rising."""
        folder = self.folder / name
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if _is_number(path.name) and path.is_dir())

    def version(self, name: str, number: int) -> Version:
        return Version(name, number, self.folder / name / str(number))

    def state(self, name: str) -> State:
        return read_state(self.folder / name)

    @contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """The model's folder, held against other processes."""
        with files.disk_errors(f"changing {self.folder / name}"), files.lock(self.folder / name / LOCK):
            yield self.folder / name

    def add(self, fill: Callable[[Path], str]) -> Version:
        """A new version. `fill` writes it into an empty folder and returns the model's name."""
        files.remove_leftovers(self.folder)
        with (
            files.disk_errors(f"writing a version in {self.folder}"),
            files.unfinished_folder(self.folder) as temporary,
        ):
            name = fill(temporary)
            files.sync_tree(temporary)
            with self.locked(name):
                number = max([*self.numbers(name), self.state(name).next - 1]) + 1
                files.finish_folder(temporary, self.folder / name / str(number))
            files.sync_folder(self.folder)
        return self.version(name, number)

    def remove(self, version: Version) -> None:
        """Take a version away: it disappears at once, its files are deleted after that. Call it with the lock held."""
        with files.unfinished_folder(self.folder) as bin_folder:
            version.path.rename(bin_folder / "version")
            files.sync_folder(version.path.parent)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and text[0] != "0"


def copy_bundle(source: Path, target: Path) -> None:
    """Copy the files that SHA256SUMS lists, reading each once: what arrives is checked while it is copied.

    BundleError where a file is missing or differs from its checksum.
    """
    sums = files.read_sums(source)
    for name, expected in sums.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            found = _copy(source / name, target / name)
        except FileNotFoundError:
            raise BundleError(
                f"{source / name} is missing, though {files.SUMS} lists it; save the model again"
            ) from None
        if found != expected:
            raise BundleError(
                f"{source / name} is damaged (its checksum differs from {files.SUMS}); save the model again"
            )
    _copy(source / files.SUMS, target / files.SUMS)


def _copy(source: Path, target: Path) -> str:
    """Copy one file; the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


def faults(folder: Path) -> list[str]:
    """What is wrong with a version folder: every file that is damaged, missing, or not listed."""
    listed = files.read_sums(folder)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    unknown = sorted(found - set(listed) - {files.SUMS})
    return files.verify_sums(folder) + [f"{name} is not listed in {files.SUMS}" for name in unknown]
