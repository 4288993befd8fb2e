"""From files of texts, prompts or conversations to encoded rows on the disk: split, fit the tokenizer, encode.

What is encoded stands in shards, each whole or not there: a process that was killed goes on at the next one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastserve import files, log
from fastserve.bundle.bundle import Bundle
from fastserve.config import Config
from fastserve.data.corpus import DocumentBlock
from fastserve.data.corpus_split import CorpusPart, beginning, split_corpus, whole_text
from fastserve.data.shards import Shards
from fastserve.data.store import StoreWriter, write_store
from fastserve.errors import ConfigError, DataError
from fastserve.models import reads
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.text.rows import RowMaker
from fastserve.text.writing_pipeline import Kind, WritingPipeline
from fastserve.training.course import PREPARED, Work
from fastserve.training.start import start_of
from fastserve.types import Completion, Conversation, Document, Preference, TextPreferences

FIT_CHARACTERS = 10_000_000
"""Of the training texts that a tokenizer is trained on, evenly spread: a minute for Chinese."""
DESCRIBED = 1_000_000
"""Characters by which a tokenizer is described."""
SHARD_TOKENS = 1 << 26
PARTS = ("train", "validation", "test")
CONTEXT = 2_048
"""Where a network that is gone on from says nothing of it."""
SAMPLE_CHARACTERS = 20
LONGEST_PATH = 1_000
SAMPLES = 4
"""Held-out documents whose beginnings are written on in each evaluation."""


def resolve(config: Config) -> str:
    """The network that is meant: a small one where the user names none."""
    return "decoder-15m" if config.model.network == "auto" else config.model.network


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that training needs of the data. context: most tokens of a row. prompts: that samples begin with.

    start: the folder of the model that is gone on from. are_pairs: whether rows are two answers to compare.
    """

    network: str
    start: Path | None
    are_pairs: bool
    pipeline: WritingPipeline
    context: int
    train: Shards
    validation: Shards
    test: Shards | None
    prompts: list[str]
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
    parts = {name: Shards.open(folder / name) for name in PARTS if (folder / name).is_dir()}
    return Prepared(
        network=state["network"],
        start=None if state["start"] is None else Path(state["start"]),
        are_pairs=state["are_pairs"],
        pipeline=WritingPipeline.load(folder, state["text"]),
        context=state["context"],
        train=parts["train"],
        validation=parts["validation"],
        test=parts.get("test"),
        prompts=state["prompts"],
        faults=state["faults"],
    )


@dataclass(frozen=True, slots=True)
class Preparation:
    """The work itself."""

    config: Config
    folder: Path

    def write(self) -> None:
        splits = split_corpus(self.config.data, self.config.train.seed)
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        present = {name: part for name, part in parts.items() if part is not None}
        log.say(f"{splits.train.corpus.address}: {splits.train.corpus.description}")
        log.say("documents: " + ", ".join(f"{len(part):,} {name}" for name, part in present.items()))
        start = start_of(self.config)
        some = next(splits.train.blocks()).documents
        if isinstance(some[0], Preference) and start is None and not Path(resolve(self.config)).is_dir():
            raise ConfigError(
                "preferences tune a model that writes already: name it with model.start=NAME, or a Hugging Face folder "
                "as model.network"
            )
        pipeline = self.pipeline(splits.train, some, start)
        context = self.context(start)
        for name, part in present.items():
            maker = RowMaker(pipeline, context)
            write_shards(part.blocks(), maker, self.folder / name)
            for sentence in maker.faults.sentences(context):
                log.say(f"{part.corpus.address}: {sentence}")
        state = {
            "network": resolve(self.config) if start is None else start.manifest.network.name,
            "start": None if start is None else str(start.folder.absolute()),
            "are_pairs": isinstance(some[0], Preference),
            "context": context,
            "text": pipeline.save(self.folder),
            "prompts": sample_prompts(splits.validation),
            "faults": splits.to_json(),
        }
        files.write_json(self.folder / PREPARED, state)

    def context(self, start: Bundle | None) -> int:
        """Most tokens of a row."""
        wanted = self.config.text.max_length
        if start is None:
            preferred = reads(resolve(self.config), causal=True).preferences.max_length
            return preferred if wanted == "auto" else wanted
        most = start.manifest.network.options.get("context")
        if wanted == "auto":
            return CONTEXT if most is None else int(most)
        if most is not None and wanted > most:
            raise ConfigError(f"text.max_length is {wanted:,}, but model.start was made for at most {most:,} tokens")
        return wanted

    def pipeline(self, part: CorpusPart, some: Sequence[Document], start: Bundle | None) -> WritingPipeline:
        """The tokenizer that is named, that belongs to the network, or that is trained on the training documents."""
        text = self.config.text
        before = None if start is None else start.writing
        if before is not None and (text.tokenizer or text.vocabulary_size != "auto"):
            raise ConfigError("model.start brings its own tokenizer: leave text.tokenizer and text.vocabulary_size out")
        tokenizer = self._trained_or_read(part) if before is None else before.tokenizer
        log.say(f"tokenizer: {tokenizer.vocabulary_size:,} tokens, {tokenizer.describe(described(some))}")
        kind = kind_of(some[0], before)
        if kind == "conversation":
            tokenizer = tokenizer.for_chats(template_in(text.chat_template))
        return WritingPipeline(tokenizer, kind)

    def _trained_or_read(self, part: CorpusPart) -> LanguageTokenizer:
        preferences = reads(resolve(self.config), causal=True).preferences
        path = self.config.text.tokenizer or preferences.tokenizer_file
        if path is not None:
            return LanguageTokenizer.read(Path(path))
        if (self.folder / "fitted").is_dir():
            return LanguageTokenizer.read(self.folder / "fitted")
        return self._trained(part, preferences)

    def _trained(self, part: CorpusPart, preferences: TextPreferences) -> LanguageTokenizer:
        size = self.config.text.vocabulary_size
        wanted = preferences.vocabulary_size if size == "auto" else size
        with log.Progress("learning the tokenizer from", total=None, unit="texts") as progress:
            by_character = self.config.text.segment == "character"
            tokenizer = LanguageTokenizer.train(some_texts(part, progress), size=wanted, characters=by_character)
        with files.new_folder(self.folder / "fitted") as temporary:
            tokenizer.save(temporary)
        return tokenizer


def template_in(wanted: str | None) -> str | None:
    """The chat template that the user names: the content of a file, or the template itself."""
    if wanted is None or len(wanted) > LONGEST_PATH or not Path(wanted).is_file():
        return wanted
    return Path(wanted).read_text("utf-8")


def some_texts(part: CorpusPart, progress: log.Progress) -> Iterator[str]:
    """At most FIT_CHARACTERS, of blocks that are evenly spread over the part."""
    characters = sum(len(whole_text(document)) for block in part.blocks() for document in block.documents)
    every = -(-characters // FIT_CHARACTERS)
    for number, block in enumerate(part.blocks()):
        if number % every == 0:
            yield from map(whole_text, block.documents)
            progress.advance(len(block))


def described(documents: Iterable[Document]) -> list[str]:
    """The first texts, up to DESCRIBED characters."""
    texts, left = [], DESCRIBED
    for document in documents:
        text = whole_text(document)[:left]
        texts.append(text)
        left -= len(text)
        if left <= 0:
            break
    return texts


def kind_of(document: Document, before: WritingPipeline | None = None) -> Kind:
    """What a bare string will mean to a model that learns from such documents.

    before: of the model that is gone on from, which knows how the bare prompts of pairs of answers are framed.
    """
    if isinstance(document, Conversation):
        return "conversation"
    if isinstance(document, Preference):
        if not isinstance(document.prompt, str):
            return "conversation"
        return "completion" if before is None or before.kind == "text" else before.kind
    return "completion" if isinstance(document, Completion) else "text"


def sample_prompts(part: CorpusPart) -> list[str]:
    """Beginnings of held-out documents: what is asked, or the first characters of a text."""
    prompts: list[str] = []
    for block in part.blocks():
        for document in block.documents:
            prompt = beginning(document, SAMPLE_CHARACTERS)
            if prompt and prompt not in prompts:
                prompts.append(prompt)
            if len(prompts) == SAMPLES:
                return prompts
    return prompts


def write_shards(blocks: Iterable[DocumentBlock], maker: RowMaker, folder: Path) -> None:
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
    maker: RowMaker
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
