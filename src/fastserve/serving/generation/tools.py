"""Tools: how a request names them, and how an answer calls them.

Calls have the form of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the text. Where
one function is demanded, or any, the answer is the JSON alone, by a grammar.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fastserve.generation.orders import Grammar
from fastserve.serving.generation.bodies import Called, ChatBody, ChatMessage, NamedTool, Tool, dump
from fastserve.serving.messages import HttpError

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function. arguments: JSON text."""

    id: str
    name: str
    arguments: str

    def content(self, index: int | None = None) -> dict[str, Any]:
        """As the API has it; index: its place among the calls, in a stream."""
        call = {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return call if index is None else {"index": index, **call}


class ToolReader:
    """Takes calls out of a text that comes in pieces. What could become a call is held back until it is told.

    Blanks before a call are dropped, unless they end a text.
    """

    def __init__(self) -> None:
        self._held = ""
        self._in_text = False
        """Whether what was shown last is text."""

    def push(self, text: str) -> list[str | Call]:
        """What can be shown now: texts and calls in their order."""
        self._held += text
        found: list[str | Call] = []
        while (place := self._held.find(OPEN)) >= 0:
            end = self._held.find(CLOSE, place)
            if end < 0:
                break
            call = read_call(self._held[place + len(OPEN) : end])
            shown = self._held[:place] if call else self._held[: end + len(CLOSE)]
            found += [*([shown] if shown.strip() or self._in_text or not call else []), *([call] if call else [])]
            self._in_text = call is None
            self._held = self._held[end + len(CLOSE) :]
        if place < 0:
            kept = next((size for size in range(len(OPEN) - 1, 0, -1) if self._held.endswith(OPEN[:size])), 0)
            shown = self._held[: len(self._held) - kept]
            if shown.strip() or self._in_text:
                found += [shown] if shown else []
                self._held, self._in_text = self._held[len(shown) :], True
        return found

    def finish(self) -> list[str | Call]:
        """What was held back; a call whose end is missing counts where its JSON is whole."""
        held, self._held = self._held, ""
        before, mark, rest = held.partition(OPEN)
        call = read_call(rest) if mark else None
        if call is None:
            return [held] if held else []
        return [*([before] if before.strip() or self._in_text else []), call]


class JsonReader:
    """An answer that is one call as a whole. name: of the function, where the request says it."""

    def __init__(self, name: str | None) -> None:
        self.name, self._text = name, ""

    def push(self, text: str) -> list[str | Call]:
        self._text += text
        return []

    def finish(self) -> list[str | Call]:
        if self.name is not None:
            return [Call(_new_id(), self.name, self._text)]
        call = read_call(self._text)
        return [self._text] if call is None else [call]


Reader = ToolReader | JsonReader


def read_call(text: str) -> Call | None:
    """A call from its JSON; None where it is none."""
    try:
        content = orjson.loads(text.strip())
    except orjson.JSONDecodeError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        return None
    arguments = content.get("arguments", content.get("parameters", {}))
    return Call(_new_id(), content["name"], arguments if isinstance(arguments, str) else dump(arguments))


def _new_id() -> str:
    return f"call_{os.urandom(12).hex()}"


def offered(body: ChatBody) -> list[Tool]:
    """The tools that the model may call: none where the request says so."""
    tools = body.tools or []
    if body.tool_choice is not None and body.tool_choice != "none" and not tools:
        raise HttpError(400, "tool_choice needs 'tools'", param="tool_choice")
    return [] if body.tool_choice == "none" else tools


def demanded(body: ChatBody) -> tuple[Grammar, JsonReader] | None:
    """The form of the answer, and how it is read, where the request demands a call."""
    tools = offered(body)
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        found = next((tool.function for tool in tools if tool.function.name == name), None)
        if found is None:
            names = ", ".join(tool.function.name for tool in tools)
            raise HttpError(400, f"tool_choice names '{name}'; tools are: {names}", param="tool_choice")
        return Grammar("json_schema", dump(_parameters(found.parameters))), JsonReader(name)
    if body.tool_choice == "required":
        return Grammar("json_schema", dump({"anyOf": [_call_schema(tool) for tool in tools]})), JsonReader(None)
    return None


def _parameters(schema: dict[str, Any] | None) -> dict[str, Any]:
    return schema or {"type": "object"}


def _call_schema(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": _parameters(tool.function.parameters)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """As chat templates expect them."""
    return [tool.model_dump(exclude_none=True) for tool in tools] or None


def template_message(message: ChatMessage) -> dict[str, Any]:
    """As chat templates expect it: arguments of calls as objects."""
    role = "system" if message.role == "developer" else message.role
    content: dict[str, Any] = {"role": role, "content": message.text}
    if message.name is not None:
        content["name"] = message.name
    if message.tool_call_id is not None:
        content["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        content["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return content


def _template_call(call: Called) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _object(call.function.arguments)}
    return {"type": "function", "function": function}


def _object(arguments: str) -> Any:
    try:
        return orjson.loads(arguments) if arguments.strip() else {}
    except orjson.JSONDecodeError:
        raise HttpError(400, "the arguments of a tool call are not valid JSON", param="messages") from None
