"""From files of labelled texts to encoded rows on the disk: read, split, fit the text pipeline, encode.

The result stands in the run's folder, whole or not at all, so that a resumed run does not prepare again.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve import device, files, log
from fastserve.config import Config
from fastserve.data.blocks import Block
from fastserve.data.split import Part, Splits, load_splits
from fastserve.data.store import Store, StoreWriter, write_store
from fastserve.errors import ConfigError
from fastserve.models import NetworkShape, reads, resolve
from fastserve.models.builtin import Reads
from fastserve.tasks.classification import Classification
from fastserve.text.pipeline import TextPipeline
from fastserve.training.classification.start import Start, load_start, take_start
from fastserve.training.course import PREPARED, Work

FIT_TEXTS = 200_000
"""Texts, evenly spread, that the vocabulary is learned from: enough for every word that matters, whatever the file."""

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that judge a network, with what a report shows of them."""

    store: Store
    texts: list[str]
    columns: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that training needs of the data.

    network: the one that is trained on it, never `auto`. faults: what was wrong with it, for the report.
    start: what the run goes on from, where it does.
    """

    network: str
    pipeline: TextPipeline
    labels: list[str]
    multi_label: bool
    train: Store
    validation: HeldOut
    test: HeldOut | None
    faults: dict[str, Any]
    start: Start | None = None

    @property
    def shape(self) -> NetworkShape:
        sizes = {name: self.pipeline.vocabulary_size(name) for name in self.pipeline.encodings}
        return NetworkShape(sizes, len(self.labels), exclusive=not self.multi_label)


def prepare(config: Config, folder: Path, meanwhile: Work = lambda: None) -> None:
    """Make the prepared data in `folder`, where no earlier process left it; `load` reads it.

    meanwhile: done in a thread while worker processes encode.
    """
    if not (folder / PREPARED).is_file():
        with files.new_folder(folder) as temporary:
            Preparation(config, temporary, meanwhile).write()


def load(folder: Path) -> Prepared:
    """What `Preparation` wrote."""
    state = json.loads((folder / PREPARED).read_text("utf-8"))
    return Prepared(
        network=state["network"],
        pipeline=TextPipeline.load(folder, state["text"]),
        labels=state["labels"],
        multi_label=state["multi_label"],
        train=Store.open(folder / TRAIN),
        validation=_load_held_out(folder / VALIDATION),
        test=_load_held_out(folder / TEST) if (folder / TEST).is_dir() else None,
        faults=state["faults"],
        start=load_start(folder, state.get("start")),
    )


def _load_held_out(folder: Path) -> HeldOut:
    shown = json.loads((folder / "shown.json").read_text("utf-8"))
    return HeldOut(Store.open(folder / "store"), shown["texts"], shown["columns"])


@dataclass(frozen=True, slots=True)
class Preparation:
    """The work itself. folder: an empty one."""

    config: Config
    folder: Path
    meanwhile: Work = lambda: None

    def write(self) -> None:
        splits = self.split()
        start = take_start(self.config, self.folder)
        if start is not None:
            network, pipeline = start.bundle.manifest.network.name, start.bundle.pipeline
        else:
            network = resolve(self.config.model.network, len(splits.train))
            pipeline = self.fit(splits.train, reads(network))
        task = Classification(splits.labels, multi_label=splits.multi_label)
        outputs = [
            Output(part, self.folder / TRAIN) if name == TRAIN else HeldOutOutput(part, self.folder / name)
            for name, part in _parts(splits)
        ]
        PartEncoder(pipeline, task, self.meanwhile).write(outputs)
        state = {
            "network": network,
            "labels": splits.labels,
            "multi_label": splits.multi_label,
            "text": pipeline.save(self.folder),
            "faults": splits.to_json(),
            "start": None if start is None else start.reference,
        }
        files.write_json(self.folder / PREPARED, state)

    def split(self) -> Splits:
        """Which rows serve for what; every column is kept for the rows that are judged."""
        data = self.config.data
        if data.train is None:
            raise ConfigError("no training data: name a file with data.train=FILE or --data FILE")
        splits = load_splits(data, self.config.train.seed, keep=None)
        if splits.validation is None:
            raise ConfigError("data.validation is 0 rows: give a share or a file, so that the run can be judged")
        counts = ", ".join(f"{len(part):,} {_NAMES[name]}" for name, part in _parts(splits))
        log.say(f"rows: {counts}; {len(splits.labels)} labels")
        return splits

    def fit(self, part: Part, wanted: Reads) -> TextPipeline:
        """Learn vocabulary and lengths from the training rows alone."""
        pipeline = TextPipeline.create(self.config.text, wanted.encodings, preferences=wanted.preferences)
        pipeline.fit(_some_texts(part))
        return pipeline


_NAMES = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}


def _parts(splits: Splits) -> list[tuple[str, Part]]:
    named = [(TRAIN, splits.train), (VALIDATION, splits.validation), (TEST, splits.test)]
    return [(name, part) for name, part in named if part is not None]


def _some_texts(part: Part) -> Iterator[str]:
    """At most FIT_TEXTS, evenly spread over the part."""
    every = -(-len(part) // FIT_TEXTS)
    position = 0
    for block in part.blocks():
        yield from block.texts[-position % every :: every]
        position += len(block)


@dataclass(slots=True)
class Output:
    """The rows of a part on their way into a store."""

    part: Part
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder

    def blocks(self) -> Iterator[Block]:
        return self.part.blocks()

    def finish(self) -> None:
        """Write what stands beside the store."""


@dataclass(slots=True)
class HeldOutOutput(Output):
    """Beside the store what a report shows: the texts, and the columns to slice by."""

    texts: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def blocks(self) -> Iterator[Block]:
        for block in self.part.blocks():
            self.texts.extend(block.texts)
            for name, cells in block.columns.items():
                self.columns.setdefault(name, []).extend(cells)
            yield block

    def finish(self) -> None:
        files.write_json(self.folder / "shown.json", {"texts": self.texts, "columns": self.columns})


@dataclass(frozen=True, slots=True)
class PartEncoder:
    """Texts and labels of all parts to stores, by one set of worker processes."""

    pipeline: TextPipeline
    task: Classification
    meanwhile: Work

    def write(self, outputs: Sequence[Output]) -> None:
        total = sum(len(output.part) for output in outputs)
        with (
            contextlib.ExitStack() as stores,
            log.Progress("encoding", total=total, unit="texts") as progress,
        ):
            writers = [stores.enter_context(write_store(output.store)) for output in outputs]
            self._encode(outputs, writers, progress)
        for output in outputs:
            output.finish()

    def _encode(self, outputs: Sequence[Output], writers: Sequence[StoreWriter], progress: log.Progress) -> None:
        waiting: deque[tuple[StoreWriter, npt.NDArray[Any], npt.NDArray[np.int64]]] = deque()

        def texts() -> Iterator[list[str]]:
            for output, writer in zip(outputs, writers, strict=True):
                for block in output.blocks():
                    waiting.append((writer, self.task.targets(block.labels), block.rows))
                    yield block.texts

        encoded_blocks = self.pipeline.encode_blocks(texts(), workers=device.cores())
        with contextlib.ExitStack() as beside:
            for number, encoded in enumerate(encoded_blocks):
                if number == 0:  # the processes are there; one that is forked beside a thread could find its locks held
                    beside.enter_context(_beside(self.meanwhile))
                writer, targets, rows = waiting.popleft()
                writer.append(encoded, targets, rows)
                progress.advance(len(rows))


@contextlib.contextmanager
def _beside(work: Work) -> Iterator[None]:
    """Do `work` in a thread, to its end."""
    thread = threading.Thread(target=work, name="beside the encoding", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
