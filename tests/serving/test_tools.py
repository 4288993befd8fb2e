"""Tools: offered by the template, called in the text, demanded by a grammar."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastserve.serving.generation.tools import Call, JsonReader, ToolReader

Write = Callable[..., Any]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] }}{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "{{ '<tool_call>' + call.function.name + (call.function.arguments | tojson) + '</tool_call>' }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "what the weather is",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
USER = {"role": "user", "content": "hi"}


def read(reader: Any, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    """All the text, and all calls."""
    found = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    calls = [(part.name, json.loads(part.arguments)) for part in found if isinstance(part, Call)]
    return "".join(part for part in found if isinstance(part, str)), calls


@example([12], "Let me look. ", 1)
@given(st.lists(st.integers(0, 200), max_size=12), st.sampled_from(["", "Let me look. "]), st.integers(1, 2))
def test_calls_are_found_however_the_text_is_cut(cuts: list[int], before: str, times: int) -> None:
    text = before + CALL * times
    places = sorted({0, len(text), *(cut % len(text) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert read(ToolReader(), pieces) == (before, [("weather", {"city": "北京"})] * times)


@given(st.text("<tool_cal/>{}x ", max_size=60), st.integers(1, 5))
def test_text_without_a_call_comes_back_as_it_was(text: str, size: int) -> None:
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    assert read(ToolReader(), pieces) == (text, [])


def test_a_call_that_was_cut_off_counts_where_it_is_whole() -> None:
    assert read(ToolReader(), [CALL.removesuffix("</tool_call>")])[1] == [("weather", {"city": "北京"})]
    assert read(ToolReader(), ["<tool_call>{"]) == ("<tool_call>{", [])
    assert read(ToolReader(), ["<tool_call>rubbish</tool_call>"]) == ("<tool_call>rubbish</tool_call>", [])


def test_an_answer_that_is_one_call() -> None:
    assert read(JsonReader("weather"), ['{"city":', ' "x"}']) == ("", [("weather", {"city": "x"})])
    assert read(JsonReader(None), ['{"name": "weather", "arguments": {}}']) == ("", [("weather", {})])


@pytest.fixture
def client(write: Write) -> Any:
    openai = pytest.importorskip("openai", reason="needs the openai client (extra 'test')")
    server = write({"template": TEMPLATE, "says": "I look. " + CALL})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_call_comes_back_whole_and_in_a_stream(client: Any) -> None:
    ask = {"model": "poet", "messages": [USER], "tools": [WEATHER]}
    choice = client.chat.completions.create(**ask).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look. "
    assert choice.message.tool_calls[0].function.name == "weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "北京"}
    pieces = [piece.choices[0] for piece in client.chat.completions.create(**ask, stream=True)]
    assert "".join(piece.delta.content or "" for piece in pieces) == "I look. "
    calls = [call for piece in pieces for call in piece.delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "weather")]
    assert pieces[-1].finish_reason == "tool_calls"


def test_tools_and_their_results_reach_the_template(client: Any) -> None:
    def tokens(*messages: Any, **fields: Any) -> int:
        ask = {"model": "poet", "messages": [USER, *messages], "max_tokens": 1, **fields}
        return int(client.chat.completions.create(**ask).usage.prompt_tokens)

    assert tokens(tools=[WEATHER]) > tokens() + 40
    assert tokens(tools=[WEATHER], tool_choice="none") == tokens()
    function = {"name": "weather", "arguments": '{"city": "x"}'}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    assert tokens(called, {"role": "tool", "tool_call_id": "1", "content": "sunny"}) > tokens() + 20


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_demanded(write: Write, choice: Any) -> None:
    says = '{"name": "weather", "arguments": {"city": "x"}}' if choice == "required" else '{"city": "x"}'
    server = write({"template": TEMPLATE, "says": says})
    ask = {"messages": [USER], "tools": [WEATHER], "tool_choice": choice}
    found = server.client.post("/v1/chat/completions", json=ask).json()["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] is None
    function = found["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "x"})


def test_what_cannot_be_is_named(client: Any) -> None:
    import openai

    named = {"type": "function", "function": {"name": "time"}}
    with pytest.raises(openai.BadRequestError, match="names 'time'; tools are: weather"):
        client.chat.completions.create(model="poet", messages=[USER], tools=[WEATHER], tool_choice=named)
    broken = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{"}}
    with pytest.raises(openai.BadRequestError, match="not valid JSON"):
        client.chat.completions.create(
            model="poet", messages=[USER, {"role": "assistant", "content": None, "tool_calls": [broken]}]
        )


def test_a_template_without_a_place_for_tools(write: Write) -> None:
    reply = write().client.post("/v1/chat/completions", json={"messages": [USER], "tools": [WEATHER]})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")
