"""The documents of a corpus as texts, for whoever looks at texts alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fastserve.config import DataConfig
from fastserve.data.blocks import BadRows, Block
from fastserve.data.conversations import with_answers
from fastserve.data.corpus import Corpus, first_cells, open_corpus
from fastserve.data.corpus_split import whole_text
from fastserve.data.formats import open_reader
from fastserve.data.sources import find_sources

_LABELS = ("label", "labels")


@dataclass
class DocumentTexts:
    """Everything that each document says. limit: of bad rows, in the place of the corpus's own."""

    corpus: Corpus
    limit: int | float

    def __post_init__(self) -> None:
        self.corpus = replace(self.corpus, limit=self.limit)

    @property
    def address(self) -> str:
        return self.corpus.address

    @property
    def rows(self) -> int:
        return self.corpus.rows

    @property
    def bad_rows(self) -> BadRows:
        return self.corpus.bad_rows

    def blocks(self) -> Iterator[Block]:
        """Texts without labels, by the lines of their documents."""
        for block in self.corpus.blocks():
            yield Block([whole_text(document) for document in block.documents], [], block.rows, block.file)


def document_texts(address: str, config: DataConfig) -> DocumentTexts | None:
    """Prompts with answers, conversations or preferences; None where the rows of `address` are labelled or bare texts.

    DataError where the file has no row, or its columns need others that are not there.
    """
    if config.columns.text is not None or config.columns.label is not None:
        return None
    source = find_sources(address)[0]
    reader = open_reader(source, config.max_row_bytes, [])
    if source.format == "txt" or any(name in reader.names for name in _LABELS):
        return None
    if with_answers(reader.names, first_cells(reader), config.columns, source.address) is None:
        return None
    return DocumentTexts(open_corpus(address, config), config.bad_rows)
