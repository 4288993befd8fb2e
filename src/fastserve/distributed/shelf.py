"""The folder of checkpoints: a folder each, named by its step, that is whole or absent; the newest two are kept."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastserve import files
from fastserve.distributed.pieces import Index, worker_file
from fastserve.errors import BundleError, StorageError

KEPT = 2
"""The newest and the one before, in case that the newest is damaged."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where checkpoints stand. One process (worker 0) begins, finishes and drops them; nobody else writes here."""

    folder: Path

    def place(self, step: int) -> Path:
        return self.folder / f"{step:09d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or damaged, the newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()), reverse=True)

    @contextlib.contextmanager
    def unfinished(self) -> Iterator[Path]:
        """An empty folder for the workers' files, gone at the end unless it was finished."""
        with files.disk_errors(f"writing a checkpoint in {self.folder}"):
            files.remove_leftovers(self.folder, older_than_seconds=0)
            with files.unfinished_folder(self.folder) as temporary:
                yield temporary

    def finish(self, temporary: Path, index: Index, sums: Mapping[str, str]) -> None:
        """Make what all workers have written and flushed the newest checkpoint. sums: SHA-256 of their files."""
        place = self.place(index.step)
        with files.disk_errors(f"writing {place}"):
            self._check_shared(temporary, index)
            index.write(temporary)
            files.write_sums(temporary, sums)
            self._clear(place)
            files.finish_folder(temporary, place)
        self._drop_others(index.step)

    def _check_shared(self, temporary: Path, index: Index) -> None:
        for worker in range(index.workers):
            if not (temporary / worker_file(worker)).is_file():
                raise StorageError(
                    f"worker {worker} wrote its part of a checkpoint where worker 0 does not find it: "
                    f"{self.folder} must be on storage that all machines share"
                )

    def _clear(self, place: Path) -> None:
        """A checkpoint of this very step was there: it was damaged, or it would have been taken up."""
        if place.exists():
            shutil.rmtree(place)

    def drop(self, step: int) -> None:
        """Remove a checkpoint."""
        with files.disk_errors(f"removing {self.place(step)}"):
            shutil.rmtree(self.place(step))

    def _drop_others(self, step: int) -> None:
        """Keep the newest ones up to `step`. Later steps are of a past that was given up as damaged."""
        kept = [other for other in self.steps() if other <= step][:KEPT]
        for other in set(self.steps()) - set(kept):
            shutil.rmtree(self.place(other))

    def faults(self, step: int, worker: int = 0, workers: int = 1) -> list[str]:
        """What is wrong with a checkpoint, a sentence each; this worker looks at its part of the files."""
        place = self.place(step)
        try:
            sums = files.read_sums(place)
            index = Index.read(place)
        except (BundleError, OSError) as error:
            return [str(error)]
        missing = [f"{files.SUMS} does not name {name}" for name in index.files if name not in sums]
        return missing + files.verify_sums(place, index.files[worker::workers])
