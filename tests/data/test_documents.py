"""What a language model learns from, looked at as texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastserve.config import Columns, DataConfig
from fastserve.data.documents import document_texts
from fastserve.data.quality import check


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def chat(asked: str, said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def test_the_report_on_conversations_names_their_rows(tmp_path: Path) -> None:
    rows = [chat(f"what is {n}", f"the number {n}") for n in range(50)]
    rows[6], rows[9] = chat("what is 6", ""), rows[3]
    found = document_texts(write(tmp_path / "chats.jsonl", rows), DataConfig())
    assert found is not None
    held_out = document_texts(write(tmp_path / "held_out.jsonl", rows[:2]), DataConfig())
    report = check(found, held_out)
    assert report.rows == 49
    assert report.bad_rows["reasons"] == {"empty answer": 1}
    assert report.bad_rows["listed"][0]["row"] == 7
    assert report.duplicates.examples[0]["rows"] == [4, 10]
    assert report.leakage is not None
    assert report.leakage.count == 2
    assert report.lengths["1"] == len("what is 0\nthe number 0")


def test_labelled_and_bare_texts_are_none(tmp_path: Path) -> None:
    labelled = [{"question": "a b", "answer": "c d", "label": "good"}] * 3
    assert document_texts(write(tmp_path / "labelled.jsonl", labelled), DataConfig()) is None
    bare = write(tmp_path / "bare.jsonl", [{"text": "a b"}] * 3)
    assert document_texts(bare, DataConfig()) is None
    pairs = write(tmp_path / "pairs.jsonl", [{"question": "a b", "answer": "c d"}] * 3)
    assert document_texts(pairs, DataConfig()) is not None
    assert document_texts(pairs, DataConfig(columns=Columns(text="answer"))) is None
