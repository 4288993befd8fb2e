"""The folder of a run, and how the same command finds its unfinished run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastserve
from fastserve import files
from fastserve.bundle.format import DataSource
from fastserve.config import Config, home
from fastserve.errors import StorageError
from fastserve.log import say

LOCK = ".lock"
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`$FASTSERVE_HOME/runs/ID/`: configuration, prepared data, checkpoints, events, and at the end the bundle."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def workers(self) -> Path:
        return self.path / "workers"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def finished(self) -> bool:
        return self.bundle.is_dir()


@contextlib.contextmanager
def open_run(config: Config, sources: Sequence[DataSource]) -> Iterator[RunFolder]:
    """The unfinished run of the same configuration and data, or a new one; held against other processes.

    Two runs are the same when configuration, file contents and the version of FastServe are. The name that the model
    will be published under does not matter, nor on how many workers the run goes on.
    """
    identity = _identity(config, sources)
    folder = home() / "runs"
    with files.disk_errors(f"making a run folder in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    earlier = sorted(folder.glob(f"{identity}-*"), key=_number)
    for path in reversed(earlier) if config.train.resume == "auto" else ():
        if not RunFolder(path).finished and (path / CONFIG).is_file():
            say(f"going on with the unfinished run {path.name}")
            break
    else:
        path = folder / f"{identity}-{_number(earlier[-1]) + 1 if earlier else 1}"
        files.write_json(path / CONFIG, config.to_json())
    with _held(path):
        yield RunFolder(path)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(files.lock(path / LOCK, timeout_seconds=1.0))
    except StorageError:
        raise StorageError(
            f"the run {path.name} is going on in another process; wait for it, or start anew with train.resume=never"
        ) from None
    with lock:
        yield


def _identity(config: Config, sources: Sequence[DataSource]) -> str:
    content = {
        "config": {key: value for key, value in config.to_json().items() if key not in ("name", "distributed")},
        "data": [source.model_dump(mode="json") for source in sources],
        "fastserve": fastserve.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _number(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
