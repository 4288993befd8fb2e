"""From files of labelled texts to encoded rows on the disk: read, split, fit the text pipeline, encode.

The result stands in the run's folder, whole or not at all, so that a resumed run does not prepare again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve import device, files, log
from fastserve.bundle.format import DataSource
from fastserve.config import Config, DataConfig
from fastserve.data.blocks import Block
from fastserve.data.sources import find_sources
from fastserve.data.split import Part, Splits, load_splits
from fastserve.data.store import Store, write_store
from fastserve.errors import ConfigError
from fastserve.models import NetworkKind, NetworkShape, find, resolve
from fastserve.tasks.classification import Classification
from fastserve.text.pipeline import TextPipeline

FIT_TEXTS = 200_000
"""Texts, evenly spread, that the vocabulary is learned from: enough for every word that matters, whatever the file."""

PREPARED = "prepared.json"
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
    """

    network: str
    pipeline: TextPipeline
    labels: list[str]
    multi_label: bool
    train: Store
    validation: HeldOut
    test: HeldOut | None
    faults: dict[str, Any]

    @property
    def shape(self) -> NetworkShape:
        sizes = {name: self.pipeline.vocabulary_size(name) for name in self.pipeline.encodings}
        return NetworkShape(sizes, len(self.labels), exclusive=not self.multi_label)


def prepare(config: Config, folder: Path) -> Prepared:
    """Prepared data in `folder`: what an earlier process left there, or made now."""
    if not (folder / PREPARED).is_file():
        with files.new_folder(folder) as temporary:
            Preparation(config, temporary).write()
    return load(folder)


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
    )


def _load_held_out(folder: Path) -> HeldOut:
    shown = json.loads((folder / "shown.json").read_text("utf-8"))
    return HeldOut(Store.open(folder / "store"), shown["texts"], shown["columns"])


@dataclass(frozen=True, slots=True)
class Preparation:
    """The work itself. folder: an empty one."""

    config: Config
    folder: Path

    def write(self) -> None:
        splits = self.split()
        network = resolve(self.config.model.network, len(splits.train))
        pipeline = self.fit(splits.train, find(network))
        task = Classification(splits.labels, multi_label=splits.multi_label)
        encoder = PartEncoder(pipeline, task)
        encoder.write(splits.train, self.folder / TRAIN)
        if splits.validation is not None:
            encoder.write_held_out(splits.validation, self.folder / VALIDATION)
        if splits.test is not None:
            encoder.write_held_out(splits.test, self.folder / TEST)
        state = {
            "network": network,
            "labels": splits.labels,
            "multi_label": splits.multi_label,
            "text": pipeline.save(self.folder),
            "faults": splits.to_json(),
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
        counts = ", ".join(f"{len(part):,} {name}" for name, part in _parts(splits))
        log.say(f"rows: {counts}; {len(splits.labels)} labels")
        return splits

    def fit(self, part: Part, kind: NetworkKind) -> TextPipeline:
        """Learn vocabulary and lengths from the training rows alone."""
        pipeline = TextPipeline.create(self.config.text, kind.encodings, preferences=kind.preferences)
        pipeline.fit(_some_texts(part))
        return pipeline


def _parts(splits: Splits) -> list[tuple[str, Part]]:
    named = [("training", splits.train), ("validation", splits.validation), ("test", splits.test)]
    return [(name, part) for name, part in named if part is not None]


def _some_texts(part: Part) -> Iterator[str]:
    """At most FIT_TEXTS, evenly spread over the part."""
    every = -(-len(part) // FIT_TEXTS)
    position = 0
    for block in part.blocks():
        yield from block.texts[-position % every :: every]
        position += len(block)


@dataclass(frozen=True, slots=True)
class PartEncoder:
    """Texts and labels of one part after another to stores."""

    pipeline: TextPipeline
    task: Classification

    def write(self, part: Part, folder: Path) -> None:
        self._encode(part, folder, lambda block: None)

    def write_held_out(self, part: Part, folder: Path) -> None:
        """A store, and beside it what a report shows: the texts, and the columns to slice by."""
        texts: list[str] = []
        columns: dict[str, list[str]] = {}

        def remember(block: Block) -> None:
            texts.extend(block.texts)
            for name, cells in block.columns.items():
                columns.setdefault(name, []).extend(cells)

        folder.mkdir()
        self._encode(part, folder / "store", remember)
        files.write_json(folder / "shown.json", {"texts": texts, "columns": columns})

    def _encode(self, part: Part, folder: Path, see: Callable[[Block], None]) -> None:
        waiting: deque[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]] = deque()

        def texts() -> Iterator[list[str]]:
            for block in part.blocks():
                see(block)
                waiting.append((self.task.targets(block.labels), block.rows))
                yield block.texts

        with (
            write_store(folder) as writer,
            log.Progress(f"encoding {folder.name}", total=len(part), unit="texts") as progress,
        ):
            for encoded in self.pipeline.encode_blocks(texts(), workers=device.cores()):
                targets, rows = waiting.popleft()
                writer.append(encoded, targets, rows)
                progress.advance(len(rows))


def describe_sources(config: DataConfig) -> list[DataSource]:
    """The files that a run learns from, with their checksums where they are local."""
    validation = config.validation if isinstance(config.validation, str) and config.validation != "auto" else None
    return [
        DataSource(address=source.address, sha256=_sha256(source.address))
        for address in (config.train, validation, config.test)
        if address is not None
        for source in find_sources(address)
    ]


def _sha256(address: str) -> str | None:
    path = Path(address)
    return files.sha256(path) if path.is_file() else None
