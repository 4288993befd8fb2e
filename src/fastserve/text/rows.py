"""Documents to the rows that a causal language model learns from: token ids, and how much each counts in the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastserve.text.writing_pipeline import WritingPipeline
from fastserve.types import (
    Completion,
    Conversation,
    Document,
    FloatArray,
    IntArray,
    LongArray,
    PlainText,
    Ragged,
)


@dataclass(frozen=True, slots=True)
class Row:
    """ids int32 (T,) with T at most the context; weights float32 (T,), None where all count. text: what its counted
    tokens stand for.
    """

    ids: IntArray
    weights: FloatArray | None
    text: str

    @property
    def counted(self) -> int:
        """Tokens that are predicted: never the first."""
        return len(self.ids) - 1 if self.weights is None else int(np.count_nonzero(self.weights[1:]))


@dataclass(slots=True)
class Faults:
    """Documents that were longer than the context, by the lines on which they begin. cut: the rest of them is lost."""

    split: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    """Those of which nothing to learn was left."""

    def sentences(self, context: int) -> Iterator[str]:
        """What a user should know."""
        for rows, what in (
            (self.split, "texts are longer than the context and become several rows"),
            (self.cut, "answers do not fit the context behind their prompts and are cut"),
            (self.empty, "prompts fill the context, so that no answer is left to learn, and are left out"),
        ):
            if rows:
                first = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
                yield f"{len(rows):,} {what} of {context:,} tokens (rows {first}); text.max_length changes it"


@dataclass(frozen=True, slots=True)
class Encoded:
    """targets: int64 (rows, 3), counted tokens' characters, bytes and number; rows: int64 (rows,), lines."""

    tokens: Ragged
    targets: LongArray
    rows: LongArray


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Makes rows of at most `context` tokens. faults: is told of documents that do not fit."""

    pipeline: WritingPipeline
    context: int
    faults: Faults = field(default_factory=Faults)

    def encode(self, documents: Sequence[Document], lines: LongArray) -> Encoded:
        """The rows of documents of one kind."""
        found: list[Row] = []
        numbers: list[int] = []
        for rows, line in zip(self._rows_of_all(documents, lines.tolist()), lines.tolist(), strict=True):
            found += rows
            numbers += [line] * len(rows)
        tokens = Ragged.from_rows([row.ids for row in found])
        weights = [row.weights for row in found if row.weights is not None]
        if weights:
            tokens = Ragged(tokens.values, tokens.offsets, np.concatenate(weights))
        sizes = [(len(row.text), len(row.text.encode("utf-8", "replace")), row.counted) for row in found]
        return Encoded(tokens, np.array(sizes, np.int64).reshape(-1, 3), np.array(numbers, np.int64))

    def _rows_of_all(self, documents: Sequence[Document], lines: list[int]) -> Iterator[list[Row]]:
        plain = [document for document in documents if isinstance(document, PlainText)]
        if len(plain) == len(documents):
            for document, ids, line in zip(plain, self.pipeline.encode_texts(plain), lines, strict=True):
                yield self._pieces(document, ids, line)
            return
        answered = [document for document in documents if isinstance(document, Completion | Conversation)]
        encoded = self.pipeline.encode_answered(answered)
        for asked, (ids, weights), line in zip(answered, encoded, lines, strict=True):
            yield self._answered(asked, ids, weights, line)

    def _pieces(self, document: PlainText, ids: IntArray, line: int) -> list[Row]:
        """A long text becomes rows that overlap by one token, so that each token is predicted exactly once."""
        if len(ids) > self.context:
            self.faults.split.append(line)
        starts = range(0, max(len(ids) - 1, 1), self.context - 1)
        parts = [ids[start : start + self.context] for start in starts]
        # the whole text's characters stand at its first row: figures are sums over all rows
        return [Row(part, None, "" if number else document.text) for number, part in enumerate(parts)]

    def _answered(
        self, document: Completion | Conversation, ids: IntArray, weights: FloatArray, line: int
    ) -> list[Row]:
        text = _said(document)
        if len(ids) > self.context:
            ids, weights = ids[: self.context], weights[: self.context]
            if not weights[1:].any():
                self.faults.empty.append(line)
                return []
            self.faults.cut.append(line)
            text = self.pipeline.tokenizer.decode(ids[weights > 0])
        return [Row(ids, weights, text)]


def _said(document: Completion | Conversation) -> str:
    """What is learned of it."""
    if isinstance(document, Completion):
        return document.completion
    return "".join(message.content for message in document.messages if message.role == "assistant")
