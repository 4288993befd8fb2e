"""Rows to documents: each form that people write, and what is said of a row that is none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.config import Columns
from fastserve.data.blocks import BadRow, RawBlock
from fastserve.data.conversations import Form, recognize
from fastserve.data.formats import open_reader
from fastserve.data.messages import ROLES
from fastserve.data.sources import find_sources
from fastserve.errors import DataError
from fastserve.types import Completion, Conversation, Document, Message, PlainText, Preference

OPENAI = [
    {"role": "system", "content": "short"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
TALK = Conversation((Message("user", "hi"), Message("assistant", "yo")))
WITH_SYSTEM = Conversation((Message("system", "short"), *TALK.messages))


def block(rows: Sequence[Mapping[str, Any]]) -> RawBlock:
    names = list(dict.fromkeys(name for row in rows for name in row))
    numbers = np.arange(1, len(rows) + 1, dtype=np.int64)
    return RawBlock(numbers, {name: [row.get(name) for row in rows] for name in names})


def parsed(rows: Sequence[Mapping[str, Any]], **columns: str) -> tuple[Form, list[Document], list[BadRow]]:
    raw = block(rows)
    form = recognize(list(raw.columns), raw.columns, Columns(**columns), "f.jsonl")
    documents, numbers, bad = form.parse(raw, "f.jsonl")
    assert sorted([*numbers.tolist(), *(row.row for row in bad)]) == list(range(1, len(rows) + 1))
    assert len(numbers) == len(documents)
    return form, documents, bad


def row(**cells: Any) -> dict[str, Any]:
    return cells


@pytest.mark.parametrize(
    ("cells", "columns", "document", "description"),
    [
        (row(text="a b", label="x"), {}, PlainText("a b"), "a text in 'text'"),
        (row(id="1", poem="床前明月光"), {"text": "poem"}, PlainText("床前明月光"), "a text in 'poem'"),
        (row(text="a", messages=OPENAI), {"text": "text"}, PlainText("a"), "a text in 'text'"),
        (row(prompt="a", completion="b"), {}, Completion("a", "b"), "a prompt in 'prompt'"),
        (row(question="a", answer="b"), {}, Completion("a", "b"), "what follows it in 'answer'"),
        (row(form="绝句", text="床前"), {"prompt": "form", "completion": "text"}, Completion("绝句", "床前"), "'form'"),
        (row(prompt="a", text="b"), {"prompt": "prompt", "completion": "text"}, Completion("a", "b"), "'text'"),
        (row(prompt=OPENAI[:2], completion=OPENAI[2:]), {}, WITH_SYSTEM, "a prompt"),
        (row(instruction="hi", input="", output="yo"), {}, TALK, "Alpaca"),
        (row(instruction="hi", input=None, output="yo", system="short"), {}, WITH_SYSTEM, "Alpaca"),
        (row(instruction="hi", response="yo", context=None), {}, TALK, "the assistant 'response'"),
        (row(conversations=SHAREGPT), {}, TALK, "in 'conversations' in the ShareGPT form"),
        (row(conversations=SHAREGPT, system="short"), {}, WITH_SYSTEM, "ShareGPT"),
        (row(messages=OPENAI), {}, WITH_SYSTEM, "in 'messages' in the OpenAI form"),
        (row(messages=json.dumps(OPENAI)), {}, WITH_SYSTEM, "OpenAI"),
        (row(id=1, dialogue=OPENAI, text="a"), {}, WITH_SYSTEM, "in 'dialogue' in the OpenAI form"),
        (row(a=OPENAI, b=SHAREGPT), {"messages": "b"}, TALK, "in 'b' in the ShareGPT form"),
        (
            row(conversations=SHAREGPT[:1], chosen=SHAREGPT[1], rejected={"from": "gpt", "value": "no"}),
            {},
            Preference(TALK.messages[:1], "yo", "no"),
            "'chosen' better than 'rejected'",
        ),
        (row(prompt="hi", chosen="yo", rejected="no"), {}, Preference("hi", "yo", "no"), "to what 'prompt' asks"),
        (
            row(q="hi", a="yo", b="no"),
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            Preference("hi", "yo", "no"),
            "'a' better than 'b'",
        ),
        (
            row(instruction="h", input="i", chosen="yo", rejected="no"),
            {},
            Preference((Message("user", "h\ni"),), "yo", "no"),
            "'instruction'",
        ),
        (
            row(chosen=OPENAI, rejected=[*OPENAI[:2], {"role": "assistant", "content": "no"}], prompt="hi"),
            {},
            Preference(WITH_SYSTEM.messages[:2], "yo", "no"),
            "pairs of answers",
        ),
        (
            row(chosen=OPENAI[2:], rejected=json.dumps([{"role": "assistant", "content": "no"}]), messages=OPENAI[:2]),
            {},
            Preference(WITH_SYSTEM.messages[:2], "yo", "no"),
            "to what 'messages' asks",
        ),
    ],
)  # fmt: skip
def test_each_form_is_recognized_and_read(
    cells: dict[str, Any], columns: dict[str, str], document: Document, description: str
) -> None:
    form, documents, bad = parsed([cells], **columns)
    assert (documents, bad) == ([document], [])
    assert description in form.description
    assert set(form.columns) <= set(cells)


def test_what_may_stand_in_messages() -> None:
    cells = [
        row(messages=[{"role": "developer", "content": ""}, *SHAREGPT]),
        row(messages=[{"role": "User", "content": [{"type": "text", "text": t} for t in "hi"]}, OPENAI[2]]),
        row(messages=[OPENAI[1], {"from": "function_call", "value": "yo"}]),
        row(messages=[*SHAREGPT, {"role": "observation", "content": 7}, OPENAI[2]]),
    ]  # fmt: skip
    _, documents, bad = parsed(cells)
    assert bad == []
    assert documents[:3] == [TALK] * 3
    tool = Conversation((*TALK.messages, Message("tool", "7"), TALK.messages[1]))
    assert documents[3] == tool


def test_earlier_questions_and_answers_come_first() -> None:
    history = [["a", "b"], ["c", "d"]]
    _, documents, _ = parsed([row(instruction="hi", input="", output="yo", history=history)])
    (found,) = documents
    assert isinstance(found, Conversation)
    assert [message.content for message in found.messages] == ["a", "b", "c", "d", "hi", "yo"]


U, A, S = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        ([A, U, A], "roles in the wrong order", "1 is of the assistant at the beginning; expected system or user"),
        ([U, U, A], "roles in the wrong order", "message 2 is of the user after one of the user; expected assistant"),
        ([S, A], "roles in the wrong order", "message 2 is of the assistant after one of the system; expected user"),
        ([U, A, S, U, A], "roles in the wrong order", "message 3 is of the system after one of the assistant"),
        ([U, A, U], "roles in the wrong order", "the last message is of the user; expected one of the assistant"),
        ([], "roles in the wrong order", "there is no message"),
        ([U, {"role": "assistant", "content": " \n"}], "empty answer", "message 2 of the assistant"),
        ([U, {"role": "assistant", "content": None}], "empty answer", "message 2 of the assistant"),
        ([{"role": "user", "content": ""}, A], "empty prompt", "message 1 of the user"),
        ([U, {"role": "narrator", "content": "x"}], "unknown role", "message 2 is of 'narrator'; known are assist"),
        ([U, {"role": 3, "content": "x"}], "unknown role", "message 2 is of '3'"),
        ([U, {"role": "assistant", "text": "x"}], "missing field", "message 2 has no 'content', only role, text"),
        ([U, {"content": "x"}], "missing field", "message 2 has no 'role' (or 'from'), only content"),
        ([U, "x"], "not a list of messages", "message 2 is 'x'; expected an object with role and content"),
        ("x", "not a list of messages", "'x'"),
        ('[{"role"', "not a list of messages", "'[{\"role\"'"),
        (None, "not a list of messages", "nothing"),
        ({"role": "user"}, "not a list of messages", "{'role': 'user'}"),
        ([U, {"role": "assistant", "content": {"a": 1}}], "not text", "message 2 of the assistant: \"{'a': 1}\""),
        ([{"role": "user", "content": [{"type": "image_url"}]}, A], "not text", "message 1 of the user"),
        ([U, {"role": "assistant", "content": "a\ud800"}], "not text", "2 of the assistant holds half a character"),
    ],
)  # fmt: skip
def test_a_faulty_conversation_is_named_with_its_row(messages: Any, reason: str, detail: str) -> None:
    _, documents, bad = parsed([row(messages=OPENAI), row(messages=messages), row(messages=OPENAI)])
    assert documents == [WITH_SYSTEM] * 2
    (found,) = bad
    assert (found.row, found.file, found.reason) == (2, "f.jsonl", reason)
    assert found.detail.startswith(detail) or detail in found.detail
    assert str(found).startswith(f"f.jsonl row 2: {reason}: ")


@pytest.mark.parametrize(
    ("cells", "reason", "detail"),
    [
        (row(text=" "), "empty text", ""),
        (row(prompt=["a"], completion="b"), "not text", "'prompt': \"['a']\""),
        (row(prompt="a", completion=""), "empty answer", "'completion' after 'a'"),
        (row(prompt=None, completion="b"), "empty prompt", "'prompt'"),
        (row(instruction="a", input="", output=" "), "empty answer", "'output' to 'a'"),
        (row(instruction="", input=None, output="b"), "empty prompt", "neither an instruction nor an input"),
        (row(instruction="a", input="", output="b", history="x"), "not a list of messages", "the history is 'x'"),
        (row(prompt="a", chosen="", rejected="b"), "empty answer", "'chosen'"),
        (row(prompt="a", chosen="b", rejected="b"), "chosen and rejected are the same", "'b'"),
        (row(prompt="", chosen="b", rejected="c"), "empty prompt", "'prompt'"),
        (row(prompt="a", chosen=SHAREGPT[0], rejected="c"), "roles in the wrong order", "'chosen' ends with a message"),
        (row(prompt="a", chosen="b", rejected=[]), "roles in the wrong order", "'rejected' ends with nothing"),
        (row(prompt=[A], chosen="b", rejected="c"), "roles in the wrong order", "message 1 is of the assistant"),
        (
            row(prompt="a", chosen=OPENAI, rejected=SHAREGPT[1:]),
            "chosen and rejected answer different prompts",
            "'hi' and ''",
        ),
    ],
)  # fmt: skip
def test_a_faulty_row_of_another_form_is_named(cells: dict[str, Any], reason: str, detail: str) -> None:
    _, documents, bad = parsed([cells])
    assert documents == []
    assert (bad[0].row, bad[0].reason) == (1, reason)
    assert detail in bad[0].detail


@pytest.mark.parametrize(
    ("cells", "columns", "message"),
    [
        (row(a="x"), {"text": "b"}, "f.jsonl has no column 'b': .*available: a"),
        (row(a="x", b="y"), {"prompt": "a"}, r"'a' needs a partner; name it with data.columns.completion="),
        (row(a="x", b="y"), {"chosen": "a"}, r"'a' needs a partner; name it with data.columns.rejected="),
        (row(chosen="x", rejected="y"), {}, r"no column that asks for them; name it with data.columns.prompt="),
    ],
)
def test_columns_that_do_not_fit_are_an_error(cells: dict[str, Any], columns: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parsed([cells], **columns)


json_like = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from([*ROLES, "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(json_like, min_size=1, max_size=3),
    st.sampled_from(["messages", "prompt", "instruction", "chosen", "text"]),
)
def test_whatever_stands_in_a_cell_is_a_document_or_a_bad_row(cells: list[Any], name: str) -> None:
    partner = {"messages": {}, "prompt": {"completion": "a"}, "instruction": {"input": "a", "output": "b"}}
    partner |= {"chosen": {"rejected": "a", "prompt": "b"}, "text": {}}
    named = {"text": "text"} if name == "text" else {}
    _, documents, bad = parsed([{name: cell, **partner[name]} for cell in cells], **named)
    assert len(documents) + len(bad) == len(cells)


def read_whole(path: Path, **columns: str) -> tuple[Form, list[Document], list[BadRow]]:
    (source,) = find_sources(str(path))
    reader = open_reader(source, 1 << 24)
    first = next(iter(reader.blocks(reader.names)))
    form = recognize(reader.names, first.columns, Columns(**columns), source.address)
    documents: list[Document] = []
    faults: list[BadRow] = []
    for raw in reader.blocks(form.columns):
        found, _, bad = form.parse(raw, source.address)
        documents += found
        faults += bad
    return form, documents, faults


def test_real_instructions_are_read_whole(shared_data: Path) -> None:
    form, documents, bad = read_whole(shared_data / "instruct_alpaca_zh_part" / "train.jsonl.gz")
    assert "Alpaca" in form.description
    assert (len(documents), bad) == (19_424, [])
    assert all(isinstance(one, Conversation) and len(one.messages) == 2 for one in documents)


def test_real_preferences_are_read_whole(shared_data: Path) -> None:
    _, documents, bad = read_whole(shared_data / "preference_llamafactory" / "dpo_zh_demo.jsonl.gz")
    assert (len(documents), bad) == (300, [])
    lengths = Counter(len(one.prompt) for one in documents if isinstance(one, Preference))
    assert lengths == {1: 236, 2: 64}


def test_real_poems_are_plain_texts_or_what_their_form_asks_for(shared_data: Path) -> None:
    path = shared_data / "gen_tang_poems" / "dev.jsonl.gz"
    form, documents, bad = read_whole(path)
    assert form.columns == ("text",)
    assert (len(documents), bad) == (1_101, [])
    _, documents, bad = read_whole(path, prompt="form", completion="text")
    assert (len(documents), bad) == (1_101, [])
    assert all(isinstance(one, Completion) and len(one.prompt) < len(one.completion) for one in documents)


def test_parquet_and_csv_hold_messages_too(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"messages": [OPENAI, OPENAI]}), tmp_path / "a.parquet")
    assert read_whole(tmp_path / "a.parquet")[1] == [WITH_SYSTEM] * 2
    cell = json.dumps(OPENAI).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages\n"{cell}"\n"{cell}"\n', "utf-8")
    assert read_whole(tmp_path / "a.csv")[1] == [WITH_SYSTEM] * 2
