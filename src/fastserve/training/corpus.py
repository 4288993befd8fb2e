"""From documents to encoded rows on the disk, for every task that learns from a corpus.

What is encoded stands in shards, each whole or not there: a process that was killed goes on at the next one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fastserve import files, log
from fastserve.config import Config
from fastserve.data.corpus import DocumentBlock
from fastserve.data.corpus_split import CorpusPart, CorpusSplits, split_corpus, whole_text
from fastserve.data.shards import Shards
from fastserve.data.store import StoreWriter, write_store
from fastserve.errors import DataError
from fastserve.text.rows import Faults, Rows
from fastserve.types import Document, LongArray

FIT_CHARACTERS = 10_000_000
"""Of the training texts that a tokenizer is trained on, evenly spread: a minute for Chinese."""
SHARD_TOKENS = 1 << 26
PARTS = ("train", "validation", "test")


class Maker(Protocol):
    """Makes rows of documents. faults: is told of those that do not fit."""

    @property
    def faults(self) -> Faults: ...

    def encode(self, documents: Sequence[Document], lines: LongArray, /) -> Rows: ...


def split_and_say(config: Config, unit: str) -> CorpusSplits:
    """Which documents (or whatever `unit` calls them) serve for what, told to the user."""
    splits = split_corpus(config.data, config.train.seed)
    log.say(f"{splits.train.corpus.address}: {splits.train.corpus.description}")
    log.say(f"{unit}: " + ", ".join(f"{len(part):,} {name}" for name, part in parts_of(splits).items()))
    return splits


def parts_of(splits: CorpusSplits) -> dict[str, CorpusPart]:
    """Those that there are, by name."""
    parts = zip(PARTS, (splits.train, splits.validation, splits.test), strict=True)
    return {name: part for name, part in parts if part is not None}


def write_parts(splits: CorpusSplits, make: Callable[[], Maker], longest: int, folder: Path) -> None:
    """Encode every part into `folder`, each by a maker of its own, of rows of at most `longest` tokens."""
    for name, part in parts_of(splits).items():
        maker = make()
        write_shards(part.blocks(), maker, folder / name)
        for sentence in maker.faults.sentences(longest):
            log.say(f"{part.corpus.address}: {sentence}")


def open_parts(folder: Path) -> dict[str, Shards]:
    """What `write_parts` left, by name."""
    return {name: Shards.open(folder / name) for name in PARTS if (folder / name).is_dir()}


def some_texts(part: CorpusPart, progress: log.Progress) -> Iterator[str]:
    """At most FIT_CHARACTERS, of blocks that are evenly spread over the part."""
    characters = sum(len(whole_text(document)) for block in part.blocks() for document in block.documents)
    every = -(-characters // FIT_CHARACTERS)
    for number, block in enumerate(part.blocks()):
        if number % every == 0:
            yield from map(whole_text, block.documents)
            progress.advance(len(block))


def write_shards(blocks: Iterable[DocumentBlock], maker: Maker, folder: Path) -> None:
    """Encode documents into stores `folder/00000` and so on; those that are there are not made again."""
    if (folder / "done.json").is_file():
        return
    if folder.is_dir():
        files.remove_leftovers(folder, older_than_seconds=0)  # of a process that was killed: nobody else writes here
    done = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    writer = ShardWriter(folder, maker, skip=sum(one["documents"] for one in done), number=len(done))
    total = sum(one["tokens"] for one in done)
    with log.Progress(f"encoding {folder.name}", total=None, unit="tokens") as progress:
        total += writer.write(blocks, progress)
        speed = progress.rate
    if not total:
        raise DataError(f"the {folder.name} data has no row that a model could learn from")
    files.write_json(folder / "done.json", {"tokens": total})
    log.say(f"encoded {folder.name}: {total:,} tokens, {speed:,.0f} tokens/s")


@dataclass(slots=True)
class ShardWriter:
    """Fills shards of about SHARD_TOKENS one after the other. skip: documents that stand in earlier ones."""

    folder: Path
    maker: Maker
    skip: int
    number: int

    def write(self, blocks: Iterable[DocumentBlock], progress: log.Progress) -> int:
        """How many tokens were written."""
        left = self._left(blocks)
        written = 0
        while (block := next(left, None)) is not None:
            name = f"{self.number:05d}"
            if (self.folder / name).is_dir():  # written whole, and the process killed before it said so
                shutil.rmtree(self.folder / name)
            with write_store(self.folder / name) as store:
                documents, tokens = self._fill(store, block, left, progress)
            files.write_json(self.folder / f"{name}.json", {"documents": documents, "tokens": tokens})
            written += tokens
            self.number += 1
        return written

    def _left(self, blocks: Iterable[DocumentBlock]) -> Iterator[DocumentBlock]:
        """What is still to be encoded."""
        passed = 0
        for block in blocks:
            after = passed + len(block)
            if after > self.skip:
                yield block if passed >= self.skip else block.take(np.arange(self.skip - passed, len(block)))
            passed = after

    def _fill(
        self, store: StoreWriter, block: DocumentBlock | None, left: Iterator[DocumentBlock], progress: log.Progress
    ) -> tuple[int, int]:
        """Documents and tokens of one shard."""
        documents = tokens = 0
        while block is not None:
            encoded = self.maker.encode(block.documents, block.rows)
            store.append(encoded.encoded, encoded.targets, encoded.rows)
            documents, tokens = documents + len(block), tokens + len(encoded.tokens.values)
            progress.advance(len(encoded.tokens.values))
            block = next(left, None) if tokens < SHARD_TOKENS else None
        return documents, tokens
