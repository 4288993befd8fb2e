"""Which form the rows of a file have: as the user says, or recognized by names and contents of its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.config import Columns, DataConfig
from fastserve.data.columns import map_columns
from fastserve.data.document_forms import Chats, Form, Instructions, Pair, Plain, Preferences
from fastserve.data.messages import is_messages, is_sharegpt, nested
from fastserve.errors import DataError, choices

__all__ = ["Form", "recognize", "with_answers"]

_MESSAGES = ("messages", "conversations", "conversation")
_ROLES = ("text", "prompt", "completion", "messages", "chosen", "rejected")
"""What the user may name a column for."""
_PROMPTS = ("prompt", "question", "query", "instruction")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))
_INSTRUCTIONS = (("instruction", "input", "output"), ("instruction", "context", "response"))


def recognize(names: Sequence[str], cells: Mapping[str, Sequence[Any]], columns: Columns, file: str) -> Form:
    """The form of the rows of `file`: as the user's `columns` say, or by the names and some cells of its columns."""
    form = with_answers(names, cells, columns, file)
    if form is not None:
        return form
    return Plain(columns.text or map_columns(names, cells, DataConfig(columns=columns), file, labelled=False).text)


def with_answers(names: Sequence[str], cells: Mapping[str, Sequence[Any]], columns: Columns, file: str) -> Form | None:
    """`recognize` where a row is more than a text: a prompt with its answer, a conversation, or two answers."""
    named = {role: name for role in _ROLES if (name := getattr(columns, role)) is not None}
    for name in named.values():
        if name not in names:
            raise DataError(f"{file} has no column '{name}': {choices(name, names)}")
    if set(named) == {"text"}:
        return None
    looks = _Looks(list(names), cells, named, file)
    guesses: Sequence[Callable[[_Looks], Form | None]] = (_preferences, _chats, _instructions, _pair)
    return next((form for guess in guesses if (form := guess(looks)) is not None), None)


@dataclass(frozen=True, slots=True)
class _Looks:
    """What is known of a file. named: the columns that the user named, by what they are for."""

    names: list[str]
    cells: Mapping[str, Sequence[Any]]
    named: Mapping[str, str]
    file: str

    def find(self, role: str, *usual: str) -> str | None:
        """The column that the user named, or the first of the usual names that the file has."""
        return self.named.get(role) or next((name for name in usual if name in self.names), None)

    def holds(self, name: str, question: Callable[[Any], bool]) -> bool:
        """Whether most cells that hold anything are so."""
        present = [cell for cell in self.cells.get(name, ()) if cell not in (None, "", [])]
        return 2 * sum(map(question, present)) > len(present)

    def miss(self, role: str, other: str) -> DataError:
        known = choices("", self.names)
        return DataError(f"{self.file}: '{other}' needs a partner; name it with data.columns.{role}=...; {known}")


def _preferences(looks: _Looks) -> Preferences | None:
    chosen, rejected = looks.find("chosen", "chosen"), looks.find("rejected", "rejected")
    if chosen is None or rejected is None:
        if "chosen" in looks.named or "rejected" in looks.named:
            raise looks.miss("rejected" if chosen else "chosen", chosen or rejected or "")
        return None
    prompt = looks.named.get("prompt") or looks.find("messages", *_MESSAGES, *_PROMPTS)
    if prompt is None and not looks.holds(chosen, lambda cell: isinstance(nested(cell), list)):
        raise DataError(
            f"{looks.file} has '{chosen}' and '{rejected}', but no column that asks for them; name it with "
            f"data.columns.prompt=...: {choices('prompt', looks.names)}"
        )
    given = "input" if prompt == "instruction" and "input" in looks.names else None
    return Preferences(chosen, rejected, prompt, given, looks.find("", "system"))


def _chats(looks: _Looks) -> Chats | None:
    messages = looks.named.get("messages")
    if messages is None and not looks.named:
        paired = {name for pair in _PAIRS for name in pair}
        usual = sorted(set(looks.names) - paired, key=lambda name: (name not in _MESSAGES, looks.names.index(name)))
        messages = next((name for name in usual if name in _MESSAGES or looks.holds(name, is_messages)), None)
    if messages is None:
        return None
    form = "ShareGPT form (from, value)" if looks.holds(messages, is_sharegpt) else "OpenAI form (role, content)"
    return Chats(messages, looks.find("", "system"), form)


def _instructions(looks: _Looks) -> Instructions | None:
    for instruction, given, output in _INSTRUCTIONS if not looks.named else ():
        if instruction in looks.names and output in looks.names:
            known = given if given in looks.names else None
            return Instructions(instruction, known, output, looks.find("", "system"), looks.find("", "history"))
    return None


def _pair(looks: _Looks) -> Pair | None:
    prompt, completion = looks.named.get("prompt"), looks.named.get("completion")
    for usual_prompt, usual_completion in _PAIRS:
        wanted = prompt or usual_prompt, completion or usual_completion
        if wanted[0] in looks.names and wanted[1] in looks.names and wanted[0] != wanted[1]:
            return Pair(*wanted)
    if prompt or completion:
        raise looks.miss("completion" if prompt else "prompt", prompt or completion or "")
    return None
