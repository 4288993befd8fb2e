"""From files of texts to encoded rows on the disk, by the text steps that a classifier will take over.

What is encoded stands in shards, each whole or not there: a process that was killed goes on at the next one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import files, log
from fastserve.config import Config
from fastserve.data.corpus_split import CorpusPart, whole_text
from fastserve.data.shards import Shards
from fastserve.models.builtin import BUILTIN
from fastserve.text.pipeline import TextPipeline
from fastserve.text.rows import Faults, Rows
from fastserve.training.corpus import open_parts, some_texts, split_and_say, write_parts
from fastserve.training.course import PREPARED, Work
from fastserve.types import Document, IntArray, LongArray, Ragged

NETWORK = "transformer"
TEXT = "text.json"
"""The file with the fitted text steps."""
UNLIMITED = 1 << 30
"""Tokens that no text has."""


def resolve(config: Config) -> str:
    """The network that is meant."""
    return NETWORK if config.model.network == "auto" else config.model.network


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that training needs of the data."""

    network: str
    pipeline: TextPipeline
    train: Shards
    validation: Shards
    test: Shards | None
    faults: dict[str, Any]


def prepare(config: Config, folder: Path, meanwhile: Work = lambda: None) -> None:
    """Make the prepared data in `folder`, going on with what an earlier process left; `load` reads it."""
    if (folder / PREPARED).is_file():
        return
    with files.disk_errors(f"preparing the data in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    Preparation(config, folder).write()
    meanwhile()


def load(folder: Path) -> Prepared:
    """What `Preparation` wrote."""
    state = json.loads((folder / PREPARED).read_text("utf-8"))
    parts = open_parts(folder)
    return Prepared(
        network=state["network"],
        pipeline=TextPipeline.load(folder, state["text"]),
        train=parts["train"],
        validation=parts["validation"],
        test=parts.get("test"),
        faults=state["faults"],
    )


@dataclass(frozen=True, slots=True)
class Preparation:
    """The work itself."""

    config: Config
    folder: Path

    def write(self) -> None:
        splits = split_and_say(self.config, "texts")
        text = self.text_steps(splits.train)
        # a copy, since the limit is the tokenizer's own
        whole = TextPipeline.load(self.folder, text | {"max_length": UNLIMITED})
        longest = text["max_length"]
        write_parts(splits, lambda: PieceMaker(whole, longest), longest, self.folder)
        state = {"network": resolve(self.config), "text": text, "faults": splits.to_json()}
        files.write_json(self.folder / PREPARED, state)

    def text_steps(self, part: CorpusPart) -> dict[str, Any]:
        """The state of text steps that were fitted to the training texts."""
        path = self.folder / TEXT
        if not path.is_file():
            reads = BUILTIN[resolve(self.config)]
            pipeline = TextPipeline.create(self.config.text, reads.encodings, preferences=reads.preferences)
            with log.Progress("learning the words from", total=None, unit="texts") as progress:
                pipeline.fit(some_texts(part, progress))
            files.write_json(path, pipeline.save(self.folder))
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return state


@dataclass(frozen=True, slots=True)
class PieceMaker:
    """Makes rows of at most `longest` tokens: a longer text becomes several, so that nothing of it is lost."""

    pipeline: TextPipeline
    longest: int
    faults: Faults = field(default_factory=Faults)

    def encode(self, documents: Sequence[Document], lines: LongArray) -> Rows:
        """The rows of documents; of one without tokens there is none. targets: int64 (rows, 1), tokens that count."""
        encoded = self.pipeline.encode([whole_text(document) for document in documents])["tokens"]
        found: list[IntArray] = []
        numbers: list[int] = []
        for place, line in enumerate(lines.tolist()):
            pieces = self._pieces(encoded.between(place, place + 1).values, line)
            found += pieces
            numbers += [line] * len(pieces)
        rows = Ragged.from_rows(found)
        return Rows(rows, rows.lengths[:, None], np.array(numbers, np.int64))

    def _pieces(self, ids: IntArray, line: int) -> list[IntArray]:
        if len(ids) > self.longest:
            self.faults.split.append(line)
        return [ids[start : start + self.longest] for start in range(0, len(ids), self.longest)]
