"""Training, validation and test documents of a corpus: by a seed, and no document on two sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.config import DataConfig
from fastserve.data.corpus import Corpus, DocumentBlock, open_corpus
from fastserve.data.keys import same_forms, text_keys
from fastserve.data.split import BoolArray, auto_rows, chosen_blocks, is_file, stratified, without_leaks
from fastserve.errors import DataError
from fastserve.types import Completion, Conversation, Document, LongArray, Message, PlainText, Preference


@dataclass(frozen=True)
class CorpusPart:
    """Some documents of a corpus. chosen: bool (usable documents,)."""

    corpus: Corpus
    chosen: BoolArray

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def blocks(self) -> Iterator[DocumentBlock]:
        """The documents of this part, in the order of the files."""
        return chosen_blocks(self.corpus, self.chosen)


@dataclass(frozen=True)
class CorpusSplits:
    """test is None where there is none. leaked: training documents that are also held out."""

    train: CorpusPart
    validation: CorpusPart
    test: CorpusPart | None
    leaked: int

    def to_json(self) -> dict[str, Any]:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = {name: None if part is None else len(part) for name, part in parts.items()}
        bad = {name: part.corpus.bad_rows.to_json() for name, part in parts.items() if part is not None}
        return {"rows": rows, "leaked": self.leaked, "bad_rows": bad}


def split_corpus(config: DataConfig, seed: int) -> CorpusSplits:
    """Open the files of a configuration, read each once, and settle which document serves for what."""
    if config.train is None:
        raise DataError("no training data: data.train=FILE names it")
    train = open_corpus(config.train, config)
    keys, rows = _look_through(train)
    validation = _whole(str(config.validation), config) if is_file(config.validation) else None
    test = _whole(config.test, config) if config.test else None
    held = [held_keys for _, held_keys in (part for part in (validation, test) if part is not None)]
    chosen, leaked = without_leaks(keys, rows, held, train.address, config.duplicates)
    if validation is None:
        taken = _split_off(train, keys, chosen, config.validation, seed)
        part, chosen = CorpusPart(train, taken), chosen & ~taken
    else:
        part = validation[0]
    if not len(part) or not chosen.any():
        raise DataError(
            f"{train.address} has {len(keys):,} document(s), too few to hold some out: give more, or a file of other "
            "texts as data.validation"
        )
    return CorpusSplits(CorpusPart(train, chosen), part, test[0] if test else None, leaked)


def _whole(address: str, config: DataConfig) -> tuple[CorpusPart, LongArray]:
    corpus = open_corpus(address, config)
    keys, _ = _look_through(corpus)
    return CorpusPart(corpus, np.ones(len(keys), bool)), keys


def _look_through(corpus: Corpus) -> tuple[LongArray, LongArray]:
    """int64 (documents,) each: keys, equal for equal documents, and the lines on which they begin."""
    keys, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for block in corpus.blocks():
        keys.append(text_keys(same_forms([whole_text(document) for document in block.documents])))
        rows.append(block.rows)
    return np.concatenate(keys), np.concatenate(rows)


def _split_off(corpus: Corpus, keys: LongArray, chosen: BoolArray, share: str | float, seed: int) -> BoolArray:
    """The documents that validate: some of the rows, or the end of one long text."""
    taken = np.zeros(len(keys), bool)
    at = np.flatnonzero(chosen)
    if share == 0 or len(at) < 2:
        return taken
    if corpus.form is None:
        count = max(round((0.05 if share == "auto" else float(share)) * len(at)), 1)
        taken[at[-count:]] = True
        return taken
    count = max(auto_rows(len(at)) if share == "auto" else round(float(share) * len(at)), 1)
    taken[at] = stratified(keys[at], np.zeros(len(at), np.int8), count, seed)
    return taken


def whole_text(document: Document) -> str:
    """Everything that a document says, in one string."""
    match document:
        case PlainText():
            return document.text
        case Completion():
            return f"{document.prompt}\n{document.completion}"
        case Conversation():
            return "\n".join(message.content for message in document.messages)
        case Preference():
            prompt = document.prompt
            before = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
            return f"{before}\n{document.chosen}\n{document.rejected}"


def beginning(document: Document, characters: int) -> str:
    """What is asked of a model that writes on from it: the prompt, the first question, or the first characters."""
    match document:
        case PlainText():
            return document.text[:characters]
        case Completion():
            return document.prompt
        case Conversation():
            return _question(document.messages)
        case Preference():
            return document.prompt if isinstance(document.prompt, str) else _question(document.prompt)


def _question(messages: Sequence[Message]) -> str:
    return next((message.content for message in messages if message.role == "user"), "")
