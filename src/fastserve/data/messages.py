"""Messages as people write them, in the forms of OpenAI and ShareGPT, to messages in one form and a sound order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastserve.data.blocks import excerpt
from fastserve.data.cells import has_surrogate, text_of
from fastserve.types import Message

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
ROLES = {
    "system": SYSTEM, "developer": SYSTEM,
    "user": USER, "human": USER,
    "assistant": ASSISTANT, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
    "function_call": ASSISTANT,
    "tool": TOOL, "function": TOOL, "observation": TOOL, "ipython": TOOL,
}  # fmt: skip
"""What roles are called, and what they are."""

EMPTY_ANSWER = "empty answer"
EMPTY_PROMPT = "empty prompt"
MISSING = "missing field"
NO_LIST = "not a list of messages"
NO_TEXT = "not text"
UNKNOWN_ROLE = "unknown role"
WRONG_ORDER = "roles in the wrong order"

_AFTER = {"": (SYSTEM, USER), SYSTEM: (USER,), USER: (ASSISTANT,), ASSISTANT: (USER, TOOL), TOOL: (TOOL, ASSISTANT)}


class Fault(Exception):
    """Why a row is no document: `reason` is one of few, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def written(cell: Any, reason: str, what: str) -> str:
    """The text of a cell. Fault with `reason` where it is blank, with NO_TEXT where it is something else."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise Fault(reason, what)
    text = text_of(cell)
    if text is None:
        raise Fault(NO_TEXT, f"{what}: {excerpt(cell)}")
    if has_surrogate(text):
        raise Fault(NO_TEXT, f"{what} holds half a character: {excerpt(text)}")
    return text


def nested(cell: Any) -> Any:
    """A cell that holds JSON as a string (in a csv), read; others as they are."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def is_messages(cell: Any) -> bool:
    """Whether a cell looks like a list of messages."""
    cell = nested(cell)
    return isinstance(cell, list) and bool(cell) and all(isinstance(one, dict) and _keys(one) for one in cell)


def is_sharegpt(cell: Any) -> bool:
    return is_messages(cell) and "from" in nested(cell)[0]


def _keys(message: dict[str, Any]) -> tuple[str, str] | None:
    for role, content in (("role", "content"), ("from", "value")):
        if role in message:
            return role, content
    return None


def read_messages(cell: Any) -> list[Message]:
    """The messages of a cell, without empty system prompts. Fault where one cannot be used."""
    cell = nested(cell)
    if not isinstance(cell, list):
        raise Fault(NO_LIST, "nothing" if cell is None else excerpt(cell))
    messages = [_message(one, number) for number, one in enumerate(cell, start=1)]
    return [message for message in messages if message.content or message.role != SYSTEM]


def _message(value: Any, number: int) -> Message:
    if not isinstance(value, dict):
        raise Fault(NO_LIST, f"message {number} is {excerpt(value)}; expected an object with role and content")
    keys = _keys(value)
    if keys is None:
        raise Fault(MISSING, f"message {number} has no 'role' (or 'from'), only {', '.join(map(str, value))}")
    role_key, content_key = keys
    if content_key not in value:
        raise Fault(MISSING, f"message {number} has no '{content_key}', only {', '.join(map(str, value))}")
    said = value[role_key]
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise Fault(UNKNOWN_ROLE, f"message {number} is of {excerpt(said)}; known are {', '.join(sorted(ROLES))}")
    return Message(role, _content(value[content_key], role, number))


def _content(value: Any, role: str, number: int) -> str:
    """Text, or a list of parts that are text."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if role == SYSTEM and (value is None or value == ""):
        return ""
    return written(value, EMPTY_ANSWER if role == ASSISTANT else EMPTY_PROMPT, f"message {number} of the {role}")


def in_order(messages: Sequence[Message], *, last: tuple[str, ...] = (ASSISTANT,)) -> tuple[Message, ...]:
    """The messages. Fault unless: a system prompt at most, then user and assistant in turn, the last one of `last`."""
    before = ""
    for number, message in enumerate(messages, start=1):
        if message.role not in _AFTER[before]:
            place = f"after one of the {before}" if before else "at the beginning"
            expected = " or ".join(_AFTER[before])
            raise Fault(WRONG_ORDER, f"message {number} is of the {message.role} {place}; expected {expected}")
        before = message.role
    if before not in last:
        found = f"the last message is of the {before}" if before else "there is no message"
        raise Fault(WRONG_ORDER, f"{found}; expected one of the {' or '.join(last)}")
    return tuple(messages)
