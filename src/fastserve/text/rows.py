"""Documents to the rows that a causal language model learns from: token ids, and how much each counts in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fastserve.errors import DataError
from fastserve.text.writing_pipeline import Answered, WritingPipeline
from fastserve.types import (
    Completion,
    Conversation,
    Document,
    Encoded,
    FloatArray,
    IntArray,
    LongArray,
    PlainText,
    Preference,
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
    """Documents that do not fit, by the lines on which they begin. cut: what is over the context is lost."""

    split: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    """Those of which nothing to learn was left."""
    declined: list[tuple[int, str]] = field(default_factory=list)
    """Conversations that the chat template does not take, and why."""

    def sentences(self, context: int) -> Iterator[str]:
        """What a user should know."""
        for rows, what in (
            (self.split, "texts are longer than {room} and become several rows"),
            (self.cut, "answers do not fit {room} behind their prompts and are cut"),
            (self.empty, "prompts fill {room}, so that no answer is left to learn, and are left out"),
        ):
            if rows:
                first = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
                said = what.format(room=f"the context of {context:,} tokens")
                yield f"{len(rows):,} {said} (rows {first}); text.max_length changes it"
        if self.declined:
            shown = "\n".join(f"  row {row}: {why}" for row, why in self.declined[:5])
            yield f"{len(self.declined):,} conversations are left out, which the chat template does not take:\n{shown}"


@dataclass(frozen=True, slots=True)
class Rows:
    """targets: int64 (rows, 3), counted tokens' characters, bytes and number; rows: int64 (rows,), lines.

    rejected: of pairs of answers the worse ones, with their prompts; `tokens` and `targets` are then the better ones'.
    """

    tokens: Ragged
    targets: LongArray
    rows: LongArray
    rejected: Ragged | None = None

    @property
    def encoded(self) -> Encoded:
        """The encodings by name."""
        return {"tokens": self.tokens} | ({} if self.rejected is None else {"rejected": self.rejected})


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Makes rows of at most `context` tokens. faults: is told of documents that do not fit."""

    pipeline: WritingPipeline
    context: int
    faults: Faults = field(default_factory=Faults)

    def encode(self, documents: Sequence[Document], lines: LongArray) -> Rows:
        """The rows of documents of one kind."""
        pairs = [document for document in documents if isinstance(document, Preference)]
        if pairs and len(pairs) == len(documents):
            return self._encode_pairs(pairs, lines)
        found: list[Row] = []
        numbers: list[int] = []
        for rows, line in zip(self._rows_of_all(documents, lines.tolist()), lines.tolist(), strict=True):
            found += rows
            numbers += [line] * len(rows)
        return Rows(_ragged(found), _sizes(found), np.array(numbers, np.int64))

    def _encode_pairs(self, pairs: Sequence[Preference], lines: LongArray) -> Rows:
        """One row a pair of answers; a pair is left out where one of them has no room."""
        chosen, rejected, numbers = [], [], []
        for pair, line in zip(pairs, lines.tolist(), strict=True):
            both = [
                row
                for answer in (pair.chosen, pair.rejected)
                for row in self._answer(partial(self.pipeline.encode_answer, pair.prompt, answer), answer, line)
            ]
            if len(both) == 2:
                chosen.append(both[0])
                rejected.append(both[1])
                numbers.append(line)
        return Rows(_ragged(chosen), _sizes(chosen), np.array(numbers, np.int64), _ragged(rejected))

    def _rows_of_all(self, documents: Sequence[Document], lines: list[int]) -> Iterator[list[Row]]:
        plain = [document for document in documents if isinstance(document, PlainText)]
        if len(plain) == len(documents):
            for document, ids, line in zip(plain, self.pipeline.encode_texts(plain), lines, strict=True):
                yield self._pieces(document, ids, line)
            return
        completions = [document for document in documents if isinstance(document, Completion)]
        if len(completions) == len(documents):
            encoded = self.pipeline.encode_completions(completions)
            for asked, (ids, weights), line in zip(completions, encoded, lines, strict=True):
                yield self._fitted(ids, weights, asked.completion, line)
            return
        for chat, line in zip(documents, lines, strict=True):
            if not isinstance(chat, Conversation):
                raise TypeError(f"documents of several kinds: no rows are made of {type(chat).__name__} here")
            yield self._answer(partial(self.pipeline.encode_conversation, chat), _said(chat), line)

    def _answer(self, encode: Callable[[], Answered], text: str, line: int) -> list[Row]:
        """The row, or none where the chat template does not take the conversation."""
        try:
            return self._fitted(*encode(), text, line)
        except DataError as error:
            self.faults.declined.append((line, str(error)))
            return []

    def _pieces(self, document: PlainText, ids: IntArray, line: int) -> list[Row]:
        """A long text becomes rows that overlap by one token, so that each token is predicted exactly once."""
        if len(ids) > self.context:
            self.faults.split.append(line)
        starts = range(0, max(len(ids) - 1, 1), self.context - 1)
        parts = [ids[start : start + self.context] for start in starts]
        # the whole text's characters stand at its first row: figures are sums over all rows
        return [Row(part, None, "" if number else document.text) for number, part in enumerate(parts)]

    def _fitted(self, ids: IntArray, weights: FloatArray, text: str, line: int) -> list[Row]:
        """The row, cut where it does not fit, or none where nothing would be left to learn."""
        if len(ids) > self.context:
            ids, weights = ids[: self.context], weights[: self.context]
            if not weights[1:].any():
                self.faults.empty.append(line)
                return []
            self.faults.cut.append(line)
            text = self.pipeline.tokenizer.decode(ids[weights > 0])
        return [Row(ids, weights, text)]


def _ragged(rows: Sequence[Row]) -> Ragged:
    tokens = Ragged.from_rows([row.ids for row in rows])
    weights = [row.weights for row in rows if row.weights is not None]
    return Ragged(tokens.values, tokens.offsets, np.concatenate(weights)) if weights else tokens


def _sizes(rows: Sequence[Row]) -> LongArray:
    sizes = [(len(row.text), len(row.text.encode("utf-8", "replace")), row.counted) for row in rows]
    return np.array(sizes, np.int64).reshape(-1, 3)


def _said(conversation: Conversation) -> str:
    """What is learned of it."""
    return "".join(message.content for message in conversation.messages if message.role == "assistant")
