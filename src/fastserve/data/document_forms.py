"""The forms that rows of a language model's data have, and how each becomes a document or a reason why it is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastserve.data.blocks import BadRow, RawBlock, excerpt
from fastserve.data.cells import EMPTY_TEXT
from fastserve.data.messages import (
    ASSISTANT,
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    NO_LIST,
    SYSTEM,
    TOOL,
    USER,
    WRONG_ORDER,
    Fault,
    in_order,
    is_messages,
    nested,
    read_messages,
    written,
)
from fastserve.types import Completion, Conversation, Document, LongArray, Message, PlainText, Preference

DIFFERENT_PROMPTS = "chosen and rejected answer different prompts"
SAME_ANSWERS = "chosen and rejected are the same"


class Form(Protocol):
    """How a row is read. columns: that it needs; description: for a line to the user."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def description(self) -> str: ...

    def parse(self, raw: RawBlock, file: str) -> tuple[list[Document], LongArray, list[BadRow]]:
        """Documents, the lines on which they stand, and the rows that are none."""
        ...


class _Rows:
    """A form whose rows are read one by one."""

    @property
    def columns(self) -> tuple[str, ...]:
        raise NotImplementedError

    def document(self, row: Mapping[str | None, Any]) -> Document:
        """The document of a row, whose cells are given by column. Fault where it is none."""
        raise NotImplementedError

    def parse(self, raw: RawBlock, file: str) -> tuple[list[Document], LongArray, list[BadRow]]:
        documents: list[Document] = []
        rows, bad = [], [BadRow(row.row, row.reason, row.detail, file) for row in raw.bad]
        names = self.columns
        for number, *cells in zip(raw.rows.tolist(), *(raw.columns[name] for name in names), strict=True):
            try:
                documents.append(self.document(dict(zip(names, cells, strict=True))))
                rows.append(number)
            except Fault as fault:
                bad.append(BadRow(number, fault.reason, fault.detail, file))
        return documents, np.array(rows, np.int64), sorted(bad, key=lambda row: row.row)


@dataclass(frozen=True, slots=True)
class Plain(_Rows):
    """A text a row."""

    text: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    @property
    def description(self) -> str:
        return f"a text in '{self.text}' of each row"

    def document(self, row: Mapping[str | None, Any]) -> PlainText:
        return PlainText(written(row[self.text], EMPTY_TEXT, ""))


@dataclass(frozen=True, slots=True)
class Pair(_Rows):
    """A prompt and what is written after it; two lists of messages make a conversation."""

    prompt: str
    completion: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)

    @property
    def description(self) -> str:
        return f"a prompt in '{self.prompt}' and what follows it in '{self.completion}'"

    def document(self, row: Mapping[str | None, Any]) -> Completion | Conversation:
        prompt, completion = row[self.prompt], row[self.completion]
        if is_messages(prompt) and is_messages(completion):
            return Conversation(in_order(read_messages(prompt) + read_messages(completion)))
        return Completion(
            written(prompt, EMPTY_PROMPT, f"'{self.prompt}'"),
            written(completion, EMPTY_ANSWER, f"'{self.completion}' after {excerpt(prompt)}"),
        )


@dataclass(frozen=True, slots=True)
class Instructions(_Rows):
    """Alpaca: what to do, on what (or None), and the answer; with earlier pairs of question and answer in `history`."""

    instruction: str
    input: str | None
    output: str
    system: str | None = None
    history: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(
            name for name in (self.instruction, self.input, self.output, self.system, self.history) if name is not None
        )

    @property
    def description(self) -> str:
        asked = f"'{self.instruction}'" + (f" and '{self.input}'" if self.input else "")
        return f"instructions in the Alpaca form: the user says {asked}, the assistant '{self.output}'"

    def document(self, row: Mapping[str | None, Any]) -> Conversation:
        asked = asked_for(row[self.instruction], row.get(self.input))
        messages = [*_system(row.get(self.system)), *_history(row.get(self.history)), Message(USER, asked)]
        answer = written(row[self.output], EMPTY_ANSWER, f"'{self.output}' to {excerpt(asked)}")
        return Conversation((*messages, Message(ASSISTANT, answer)))


def asked_for(instruction: Any, given: Any) -> str:
    """What the user says: the instruction, and below it what it is about, where there is anything."""
    parts = [
        part for part in (instruction, given) if not (part is None or (isinstance(part, str) and not part.strip()))
    ]
    if not parts:
        raise Fault(EMPTY_PROMPT, "neither an instruction nor an input")
    return "\n".join(written(part, EMPTY_PROMPT, "the instruction") for part in parts)


def _system(cell: Any) -> list[Message]:
    return [] if cell is None or cell == "" else [Message(SYSTEM, written(cell, EMPTY_PROMPT, "the system prompt"))]


def _history(cell: Any) -> list[Message]:
    pairs = nested(cell) or []
    if not (isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)):
        raise Fault(NO_LIST, f"the history is {excerpt(cell)}; expected pairs of question and answer")
    return [
        Message(
            role, written(said, EMPTY_ANSWER if role == ASSISTANT else EMPTY_PROMPT, f"pair {number} of the history")
        )
        for number, pair in enumerate(pairs, start=1)
        for role, said in zip((USER, ASSISTANT), pair, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Chats(_Rows):
    """A list of messages a row, and a system prompt beside it in some data."""

    messages: str
    system: str | None = None
    form: str = "OpenAI form (role, content)"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.messages,) if self.system is None else (self.messages, self.system)

    @property
    def description(self) -> str:
        return f"conversations in '{self.messages}' in the {self.form}"

    def document(self, row: Mapping[str | None, Any]) -> Conversation:
        messages = [*_system(row.get(self.system)), *read_messages(row[self.messages])]
        return Conversation(in_order(messages))


@dataclass(frozen=True, slots=True)
class Preferences(_Rows):
    """Two answers to the same prompt. The prompt stands in `prompt` (and `input`), as text or a list of messages; or
    the answers are whole conversations that differ in their last message only.
    """

    chosen: str
    rejected: str
    prompt: str | None = None
    input: str | None = None
    system: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        names = (self.prompt, self.input, self.system, self.chosen, self.rejected)
        return tuple(name for name in names if name is not None)

    @property
    def description(self) -> str:
        asked = f" to what '{self.prompt}' asks" if self.prompt else ""
        return f"pairs of answers{asked}, '{self.chosen}' better than '{self.rejected}'"

    def document(self, row: Mapping[str | None, Any]) -> Preference:
        before, chosen = _answer(row[self.chosen], self.chosen)
        before_rejected, rejected = _answer(row[self.rejected], self.rejected)
        if before != before_rejected:
            raise Fault(DIFFERENT_PROMPTS, f"{excerpt(_said(before))} and {excerpt(_said(before_rejected))}")
        if chosen == rejected:
            raise Fault(SAME_ANSWERS, excerpt(chosen))
        return Preference(self._prompt(row, before), chosen, rejected)

    def _prompt(self, row: Mapping[str | None, Any], before: list[Message]) -> tuple[Message, ...] | str:
        asked, system = row.get(self.prompt), _system(row.get(self.system))
        if before:
            return in_order([*system, *before], last=(USER, TOOL))
        if isinstance(nested(asked), list):
            return in_order([*system, *read_messages(asked)], last=(USER, TOOL))
        if self.input is not None or system:
            return (*system, Message(USER, asked_for(asked, row.get(self.input))))
        return written(asked, EMPTY_PROMPT, f"'{self.prompt}'")


def _answer(cell: Any, name: str) -> tuple[list[Message], str]:
    """What was said before an answer, where the cell has it, and the answer: a text, a message, or messages."""
    found = nested(cell)
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list):
        return [], written(cell, EMPTY_ANSWER, f"'{name}'")
    *before, last = read_messages(found) or [Message("", "")]
    if last.role != ASSISTANT:
        raise Fault(WRONG_ORDER, f"'{name}' ends with {f'a message of the {last.role}' if last.role else 'nothing'}")
    return before, last.content


def _said(messages: Sequence[Message]) -> str:
    return messages[-1].content if messages else ""
