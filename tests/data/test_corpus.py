"""Files as documents of a language model: what one document is, what is held out, what is said of faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastserve.config import Columns, DataConfig
from fastserve.data.corpus import PIECE, open_corpus
from fastserve.data.corpus_split import split_corpus, whole_text
from fastserve.data.shards import Shards
from fastserve.data.store import write_store
from fastserve.errors import DataError
from fastserve.types import Completion, Document, PlainText, Ragged


def documents(path: Path, **settings: object) -> list[Document]:
    corpus = open_corpus(str(path), DataConfig.model_validate({"train": str(path), **settings}))
    return [document for block in corpus.blocks() for document in block.documents]


def test_a_text_file_is_one_text_in_pieces_that_join_to_it(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    text = "".join(f"第{number}行 of a long text 😀\n" for number in range(8000))
    path.write_text(text, "utf-8")
    found = [document for document in documents(path) if isinstance(document, PlainText)]
    assert "".join(piece.text for piece in found) == text
    assert [piece.begins for piece in found] == [True] + [False] * (len(found) - 1)
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 2
    assert all(len(piece.text) <= 2 * PIECE and piece.text.endswith("\n") for piece in found)


def test_rows_of_a_text_file_are_documents_where_the_user_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo\nthree\n", "utf-8")
    assert documents(path, documents="row") == [PlainText("one"), PlainText("two"), PlainText("three")]


def test_files_of_rows_are_no_single_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n', "utf-8")
    with pytest.raises(DataError, match="holds rows"):
        documents(path, documents="file")


def test_named_columns_are_prompt_and_completion_and_faults_have_their_row(tmp_path: Path) -> None:
    path = tmp_path / "poems.jsonl"
    rows = [{"form": f"f{n}", "text": f"poem {n}"} for n in range(40)] + [{"form": "f", "text": " "}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    config = DataConfig(train=str(path), columns=Columns(prompt="form", completion="text"), bad_rows=1)
    corpus = open_corpus(str(path), config)
    found = [document for block in corpus.blocks() for document in block.documents]
    assert found[:2] == [Completion("f0", "poem 0"), Completion("f1", "poem 1")]
    assert [row.row for row in corpus.bad_rows.listed] == [41]
    with pytest.raises(DataError, match="row 41"):
        documents(path, columns={"prompt": "form", "completion": "text"}, bad_rows=0)


def test_no_document_is_on_two_sides(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n % 50}"}) + "\n" for n in range(200)), "utf-8")
    splits = split_corpus(DataConfig(train=str(path), validation=0.2), seed=3)
    sides = [
        {whole_text(document) for block in part.blocks() for document in block.documents}
        for part in (splits.train, splits.validation)
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 50
    assert len(splits.train) + len(splits.validation) == 200


def test_texts_that_are_also_in_the_validation_file_are_not_learned(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    train.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(20)), "utf-8")
    held_out.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in (3, 99)), "utf-8")
    splits = split_corpus(DataConfig(train=str(train), validation=str(held_out)), seed=0)
    assert (len(splits.train), splits.leaked) == (19, 1)


def test_the_end_of_one_long_text_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"line {number}\n" for number in range(40_000)), "utf-8")
    splits = split_corpus(DataConfig(train=str(path)), seed=0)
    assert splits.validation.chosen.tolist() == sorted(splits.validation.chosen.tolist())
    assert splits.validation.chosen[-1]


def test_one_short_text_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short to hold any of it out", "utf-8")
    with pytest.raises(DataError, match=r"data\.validation"):
        split_corpus(DataConfig(train=str(path)), seed=0)


def test_shards_give_the_rows_of_all_stores_in_any_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 100, generator.integers(1, 9)).tolist() for _ in range(25)]
    for number, part in enumerate((rows[:7], rows[7:8], rows[8:])):
        with write_store(tmp_path / f"{number:05d}") as writer:
            targets = np.array([[len(row)] for row in part], np.int64)
            writer.append({"tokens": Ragged.from_rows(part)}, targets, np.arange(len(part)))
    shards = Shards.open(tmp_path)
    wanted = generator.permutation(25)[:13]
    batch = shards.batch(wanted)
    found = [batch.inputs["tokens"].between(i, i + 1).values.tolist() for i in range(13)]
    assert found == [rows[row] for row in wanted]
    assert batch.targets[:, 0].tolist() == [len(rows[row]) for row in wanted]
    assert shards.lengths("tokens").tolist() == [len(row) for row in rows]
    assert sum(len(part) for part in shards.in_order(4)) == len(shards) == 25
