"""From files of texts, prompts or conversations to encoded rows on the disk: split, fit the tokenizer, encode.

What is encoded stands in shards, each whole or not there: a process that was killed goes on at the next one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve import files, log
from fastserve.bundle.bundle import Bundle
from fastserve.config import Config
from fastserve.data.corpus_split import CorpusPart, beginning, whole_text
from fastserve.data.shards import Shards
from fastserve.errors import ConfigError
from fastserve.models import reads
from fastserve.text.language_tokenizer import LanguageTokenizer
from fastserve.text.rows import RowMaker
from fastserve.text.writing_pipeline import Kind, WritingPipeline
from fastserve.training.corpus import open_parts, some_texts, split_and_say, write_parts
from fastserve.training.course import PREPARED, Work
from fastserve.training.start import start_of
from fastserve.types import Completion, Conversation, Document, Preference, TextPreferences

DESCRIBED = 1_000_000
"""Characters by which a tokenizer is described."""
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
    parts = open_parts(folder)
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
        splits = split_and_say(self.config, "documents")
        start = start_of(self.config)
        some = next(splits.train.blocks()).documents
        if isinstance(some[0], Preference) and start is None and not Path(resolve(self.config)).is_dir():
            raise ConfigError(
                "preferences tune a model that writes already: name it with model.start=NAME, or a Hugging Face folder "
                "as model.network"
            )
        pipeline = self.pipeline(splits.train, some, start)
        context = self.context(start)
        write_parts(splits, lambda: RowMaker(pipeline, context), context, self.folder)
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
