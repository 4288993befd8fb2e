"""Columns by name or by guess, headers or none, labels of every spelling, several labels a row."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fastserve.config import Columns, DataConfig
from fastserve.data.cells import label_of
from fastserve.data.dataset import open_dataset
from fastserve.data.headers import is_header, words
from fastserve.data.index import sort_labels
from fastserve.errors import DataError

TEXTS = ["the food was great and hot", "never again, cold and slow", "五星好评，下次还来", "太慢了，差评"] * 5


def save(folder: Path, name: str, lines: list[str]) -> str:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        ("label\ttext\tid", "text", "label"),
        ("类别\t评论\t编号", "评论", "类别"),
        ("Sentiment\tReview_Text\tReviewId", "Review_Text", "Sentiment"),
        ("y\tx\tz", "x", "y"),
        ("cat\tsaid\tn", "said", "cat"),
        ("情感标签\t评论内容\tuid", "评论内容", "情感标签"),
    ],
)
def test_columns_are_guessed_and_the_guess_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, header: str, text: str, label: str
) -> None:
    lines = [header, *(f"{i % 2}\t{body}\t{1000 + i}" for i, body in enumerate(TEXTS))]
    with caplog.at_level(logging.INFO, "fastserve"):
        dataset = open_dataset(save(tmp_path, "a.tsv", lines))
    assert (dataset.mapped.text, dataset.mapped.label) == (text, label)
    assert f"texts in '{text}' and labels in '{label}', guessed" in caplog.text


def test_columns_that_are_named_are_not_guessed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["title\ttext\tlabel\tdomain", *(f"t {i}\t{body}\t{i % 2}\td{i % 3}" for i, body in enumerate(TEXTS))]
    config = DataConfig(columns=Columns(text="title", label="domain"))
    with caplog.at_level(logging.INFO, "fastserve"):
        dataset = open_dataset(save(tmp_path, "a.tsv", lines), config, keep=None)
    assert caplog.text == ""
    example = next(iter(dataset))
    assert (example.text, example.labels) == ("t 0", ("d0",))
    assert example.columns == {"text": TEXTS[0], "label": "0"}


def test_of_several_files_the_other_columns_that_all_have_are_kept(tmp_path: Path) -> None:
    save(tmp_path, "a.tsv", ["label\ttext\tid\tonly", *(f"{i % 2}\t{body}\t{i}\tx" for i, body in enumerate(TEXTS))])
    save(tmp_path, "b.tsv", ["label\ttext\tid", *(f"{i % 2}\t{body}\t{i}" for i, body in enumerate(TEXTS))])
    examples = list(open_dataset(str(tmp_path / "*.tsv"), keep=None))
    assert len(examples) == 2 * len(TEXTS)
    assert {tuple(example.columns) for example in examples} == {("id",)}


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (["text", "label"], True),
        (["内容", "标签"], True),
        (["verdict", "said"], True),
        (["1", "the food was great and hot"], False),
        (["good", "the food was great and hot"], False),
        (["pos", "short"], False),
        (["bad", "a text that is far too long for the name of a column, is it not?"], False),
    ],
)
def test_headers_are_told_from_data(first: list[str], expected: bool) -> None:
    rest = [["good", "what a day"], ["bad", "never again"], ["pos", "yes"]]
    assert is_header(first, rest, []) is expected


def test_a_file_without_a_header_loses_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastserve"):
        dataset = open_dataset(save(tmp_path, "a.csv", [f'{i % 2},"{body}"' for i, body in enumerate(TEXTS)]))
    assert "has no header; its columns are called column1, column2" in caplog.text
    examples = list(dataset)
    assert [(e.row, e.text) for e in examples] == list(enumerate(TEXTS, start=1))


def test_other_separators_under_the_name_of_csv(tmp_path: Path) -> None:
    for mark in ";", "\t":
        lines = [f"text{mark}label", *(f"{body.replace(',', '')}{mark}{i % 2}" for i, body in enumerate(TEXTS))]
        assert len(list(open_dataset(save(tmp_path, "a.csv", lines)))) == 20


@pytest.mark.parametrize(
    ("cell", "label"),
    [(1, "1"), ("1", "1"), (1.0, "1"), ("1.0", "1"), (" 1 ", "1"), ("-2.00", "-2"), (0.5, "0.5"), ("v1.0", "v1.0"),
     (True, "True"), (None, None), (float("nan"), None), ("", None), ("NaN", None), ("None", None), ("none", "none"),
     ("null", None), ("好", "好")],
)  # fmt: skip
def test_labels_of_every_spelling(cell: object, label: str | None) -> None:
    assert label_of(cell) == label


def test_true_is_not_one_even_in_one_column(tmp_path: Path) -> None:
    lines = [json.dumps({"text": t, "label": [1, True, 1.0, "1"][i % 4]}) for i, t in enumerate(TEXTS)]
    labels = {e.labels for e in open_dataset(save(tmp_path, "a.jsonl", lines))}
    assert labels == {("1",), ("True",)}


def test_several_labels_by_a_separator(tmp_path: Path) -> None:
    lines = ["text\tlabel", "one\ta|b", "two\tb", "three\t a | c |a", "four\t|"]
    config = DataConfig(columns=Columns(separator="|"), bad_rows=1)
    dataset = open_dataset(save(tmp_path, "a.tsv", lines), config)
    assert [e.labels for e in dataset] == [("a", "b"), ("b",), ("a", "c")]
    assert dataset.multi_label
    assert dataset.bad_rows.counts == {"no label": 1}


def test_several_labels_in_lists(tmp_path: Path) -> None:
    rows = [["a", "b"], [], ["b"], [1, 1.0], None]
    lines = [json.dumps({"text": f"text {i}", "label": labels}) for i, labels in enumerate(rows)]
    dataset = open_dataset(save(tmp_path, "a.jsonl", lines), DataConfig(bad_rows=1))
    assert [e.labels for e in dataset] == [("a", "b"), (), ("b",), ("1",)]
    assert dataset.bad_rows.counts == {"no label": 1}
    dataset = open_dataset(save(tmp_path, "a.jsonl", lines), DataConfig(multi_label=False, bad_rows=4))
    assert [e.labels for e in dataset] == [("b",)]
    assert dataset.bad_rows.counts == {"several labels": 2, "no label": 2}


def test_several_labels_in_columns(tmp_path: Path) -> None:
    lines = ["text,toxic,rude,kind", "one,1,1,0", "two,0,0,0", "three,0.0,True,1", "four,2,0,0", "five,,0,0"]
    config = DataConfig(columns=Columns(text="text", label=["toxic", "rude", "kind"]), bad_rows=2)
    dataset = open_dataset(save(tmp_path, "a.csv", lines), config)
    assert [e.labels for e in dataset] == [("toxic", "rude"), (), ("rude", "kind")]
    assert dataset.bad_rows.counts == {"not 0 or 1": 1, "no label": 1}
    with pytest.raises(DataError, match="multi_label is false"):
        open_dataset(save(tmp_path, "b.csv", lines), config.model_copy(update={"multi_label": False}))


def test_several_fasttext_labels(tmp_path: Path) -> None:
    lines = ["__label__a __label__b one two", "__label__c three"]
    dataset = open_dataset(save(tmp_path, "a.txt", lines))
    assert [(e.text, e.labels) for e in dataset] == [("one two", ("a", "b")), ("three", ("c",))]


def test_texts_without_labels(tmp_path: Path) -> None:
    path = save(tmp_path, "a.txt", ["one", "two"])
    assert [(e.text, e.labels) for e in open_dataset(path, labelled=False)] == [("one", ()), ("two", ())]
    with pytest.raises(DataError, match="no column looks like labels"):
        open_dataset(path)
    assert open_dataset(path, labelled=None).mapped.label is None
    labelled = save(tmp_path, "a.tsv", ["text\tlabel", "one\ta", "two\tb"])
    assert open_dataset(labelled, labelled=None).mapped.label == "label"
    assert open_dataset(labelled, DataConfig(columns=Columns(label="absent")), labelled=False).mapped.label is None


def test_a_file_is_read_with_the_columns_of_another(tmp_path: Path) -> None:
    first = open_dataset(save(tmp_path, "a.tsv", ["y\tx", *(f"{i % 2}\t{t}" for i, t in enumerate(TEXTS))]))
    second = open_dataset(save(tmp_path, "b.tsv", ["n\tx\ty", "5\twords\t1"]), mapped=first.mapped)
    assert [(e.text, e.labels) for e in second] == [("words", ("1",))]


def test_names_are_cut_into_words() -> None:
    assert words("reviewText_2") == ["review", "text", "2"]
    assert sort_labels(["10", "b", "9", "-1", "a"]) == ["-1", "9", "10", "a", "b"]


@pytest.mark.parametrize("name", ["zh_sentiment_100k/dev", "zh_tnews/train", "en_trec/train", "en_sst2/dev"])
def test_real_columns_are_guessed(shared_data: Path, name: str) -> None:
    mapped = open_dataset(str(shared_data / f"{name}.tsv.gz")).mapped
    assert (mapped.text, mapped.label, mapped.multi_label) == ("text", "label", False)
