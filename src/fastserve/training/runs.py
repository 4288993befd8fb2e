"""The folder of a run, and how the same command finds its unfinished run again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastserve
from fastserve import files
from fastserve.bundle.format import DataSource
from fastserve.config import Config, home
from fastserve.distributed import meeting
from fastserve.errors import StorageError
from fastserve.log import say

LOCK = ".lock"
CONFIG = "config.json"
JOB = "job.json"
FAILURE = "failure.json"
PARTY = "party.json"
PREPARE_SECONDS = 7 * 24 * 3600.0
"""No machine gives up while another one prepares the data: its lock ends with it."""


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

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """One machine prepares the data; the others wait, and then find it."""
        with files.lock(self.path / ".prepare", timeout_seconds=PREPARE_SECONDS):
            yield

    @property
    def finished(self) -> bool:
        return self.bundle.is_dir()


@contextlib.contextmanager
def open_run(config: Config, sources: Sequence[DataSource]) -> Iterator[RunFolder]:
    """The unfinished run of the same configuration and data, or a new one; held against other processes.

    Two runs are the same when configuration, file contents and the version of FastServe are. The name that the model
    will be published under does not matter, nor on how many workers the run goes on. Machines of one launch (those
    with the same places to meet) hold the run together.
    """
    identity = _identity(config, sources)
    folder = home() / "runs"
    with files.disk_errors(f"making a run folder in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with files.lock(home() / f".runs{LOCK}"):  # beside the folder, in which there is nothing but runs
            path = _find(config, folder, identity)
            held.enter_context(_held(path, config))
        yield RunFolder(path)


def _find(config: Config, folder: Path, identity: str) -> Path:
    """The folder of the run; a new one where there is nothing to go on with."""
    earlier = sorted(folder.glob(f"{identity}-*"), key=_number)
    for path in reversed(earlier):
        unfinished = not RunFolder(path).finished and (path / CONFIG).is_file()
        if unfinished and (config.train.resume == "auto" or _together(path, config)):
            say(f"going on with the unfinished run {path.name}")
            return path
    path = folder / f"{identity}-{_number(earlier[-1]) + 1 if earlier else 1}"
    files.write_json(path / CONFIG, config.to_json())
    return path


@contextlib.contextmanager
def _held(path: Path, config: Config) -> Iterator[None]:
    """Hold the run: alone, or together with the other machines of the same launch."""
    with open(path / LOCK, "a+", encoding="utf-8") as file:
        first = files.try_lock(file)
        if not first and not _together(path, config):
            raise StorageError(
                f"the run {path.name} is going on in another process; wait for it, or start anew with "
                "train.resume=never"
            )
        if first:
            _forget(RunFolder(path))
            files.write_json(path / PARTY, _party(config))
        if config.distributed.meets:
            fcntl.flock(file, fcntl.LOCK_SH)  # waits for nobody for long: who has it alone is about to share it
        yield


def _together(path: Path, config: Config) -> bool:
    """Whether other machines of the same launch are in the run now."""
    try:
        theirs = json.loads((path / PARTY).read_text("utf-8"))
        with open(path / LOCK, "a+", encoding="utf-8") as file:
            if files.try_lock(file) or not files.try_lock(file, shared=True):
                return False
    except FileNotFoundError:
        return False
    return config.distributed.meets and theirs == _party(config)


def _party(config: Config) -> dict[str, str | None]:
    """What machines of one launch have in common."""
    return {"rendezvous": config.distributed.rendezvous, "nodes": config.distributed.nodes}


def _forget(folder: RunFolder) -> None:
    """What an earlier launch left that is no part of the run's state."""
    for name in (JOB, FAILURE):
        (folder.path / name).unlink(missing_ok=True)
    meeting.forget(folder.workers)


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
