"""Every format gives the same rows with true row numbers."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastserve.data import delimited
from fastserve.data.dataset import open_dataset
from fastserve.data.delimited import Dialect, read_records
from fastserve.data.lines import Lines, read_lines
from fastserve.data.quoted import split_quoted_block
from fastserve.types import Example

ROWS = [("很好，喜欢", "1"), ('a "quoted" word', "0"), ("tea, milk", "1"), ("plain", "0")]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"rows.{suffix}"
    kind, _, packing = suffix.partition(".")
    if kind == "csv":
        buffer = io.StringIO()
        csv.writer(buffer).writerows([("text", "label"), *ROWS])
        content = buffer.getvalue()
    elif kind == "tsv":
        content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
    elif kind == "jsonl":
        content = "".join(json.dumps({"text": t, "label": int(y)}) + "\n" for t, y in ROWS)
    elif kind == "json":
        content = json.dumps([{"text": t, "label": int(y)} for t, y in ROWS], indent=1)
    else:
        content = "".join(f"__label__{label} {text}\n" for text, label in ROWS)
    data = content.encode()
    if packing == "gz":
        data = gzip.compress(data)
    elif packing == "zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "txt"])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str, packing: str) -> None:
    examples = list(open_dataset(str(write(tmp_path, kind + packing))))
    assert [(e.text, e.labels) for e in examples] == [(text, (label,)) for text, label in ROWS]
    first = {"csv": 2, "tsv": 2, "json": 2}.get(kind, 1)
    step = 4 if kind == "json" else 1
    assert [e.row for e in examples] == [first + step * i for i in range(4)]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [t for t, _ in ROWS], "label": [float(y) for _, y in ROWS], "other": [1, 2, 3, 4]})
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path)
    dataset = open_dataset(str(path), keep=["other"])
    assert list(dataset)[1] == Example('a "quoted" word', ("0",), 2, {"other": "2"})
    assert dataset.available == ["text", "label", "other"]


def test_csv_cells_may_hold_line_breaks_and_the_rows_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\ntwo ""x"", three",a\nfour,b\n"five\r\nsix",a\n', "utf-8")
    examples = list(open_dataset(str(path)))
    assert [(e.row, e.text) for e in examples] == [(2, 'one\ntwo "x", three'), (4, "four"), (5, "five\nsix")]


def test_an_open_quote_spoils_its_own_line_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"text {i},{i % 2}" for i in range(300)]
    rows[7] = '"text 7,1'
    rows[207] = '"text 207",1'
    path.write_text("text,label\n" + "\n".join(rows) + "\n", "utf-8")
    dataset = open_dataset(str(path))
    assert [e.row for e in dataset] == [i + 2 for i in range(300) if i != 7]
    assert [(b.row, b.reason) for b in dataset.bad_rows.listed] == [(9, "quote not closed")]


def test_two_stray_quotes_do_not_swallow_the_rows_between(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{i % 2},text {i}" for i in range(1000)]
    rows[7], rows[300] = '1,"text 7', '1,text 300"'
    path.write_text("label,text\n" + "\n".join(rows) + "\n", "utf-8")
    dataset = open_dataset(str(path))
    assert len(list(dataset)) == 999
    assert [b.row for b in dataset.bad_rows.listed] == [9]


def test_quoted_rows_between_two_stray_quotes_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = ['1,"begins', *(f'0,"text, {i}"' for i in range(5)), '1,ends"']
    path.write_text("label,text\n" + "\n".join(rows) + "\n", "utf-8")
    dataset = open_dataset(str(path))
    assert [example.text for example in dataset][:5] == [f"text, {i}" for i in range(5)]
    assert [bad.row for bad in dataset.bad_rows.listed] == [2]


def test_tsv_quotes_are_literal_unless_the_whole_cell_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('label\ttext\n1\t"all ""of"" it"\n0\t"half\n1\t"a" and "b"\n0\t"tab\there"\n', "utf-8")
    texts = [e.text for e in open_dataset(str(path))]
    assert texts == ['all "of" it', '"half', '"a" and "b"', "tab\there"]


@example([("\n,\n", "\n,\n")], 9)  # lines that have as many separators as a row, and are none
@given(
    st.lists(st.tuples(st.text('a,"\n\t 好', max_size=6), st.text('b,"\n', max_size=4)).filter(any), min_size=1),
    st.integers(1, 50),
)
@settings(deadline=None)
def test_any_csv_that_python_writes_is_read_back(rows: list[tuple[str, str]], chunk: int) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    data = buffer.getvalue().encode()
    lines = read_lines((data[i : i + chunk] for i in range(0, len(data), chunk)), 1 << 20)
    found = []
    for block in read_records(lines, Dialect(",", spans_lines=True), ["x", "y"], 1 << 20):
        assert not block.bad
        found += list(zip(block.columns["x"], block.columns["y"], strict=True))
    assert found == rows


@given(st.lists(st.text('a,"\n好', max_size=12), min_size=1, max_size=8), st.integers(1, 3))
@settings(deadline=None, max_examples=300)
def test_the_fast_way_through_csv_gives_what_the_slow_one_gives(lines: list[str], width: int) -> None:
    text = "\n".join([*lines, ""])
    block = Lines(5, text.encode(), text.count("\n"))
    fast = split_quoted_block(block, ",", width)
    if fast is not None:
        found, kept = delimited._slow(block, Dialect(",", spans_lines=True), width, 1 << 20, last=True)
        assert kept is None
        assert not found.bad
        assert (fast[0].tolist(), fast[1]) == (found.rows, found.columns())


def test_well_formed_csv_takes_the_fast_way() -> None:
    data = b'a,"b ""c"", d"\n"e\nf",\n"",g\n'
    fast = split_quoted_block(Lines(2, data, 4), ",", 2)
    assert fast is not None
    assert fast[0].tolist() == [2, 3, 5]
    assert fast[1] == [["a", "e\nf", ""], ['b "c", d', "", "g"]]


def test_real_rows_are_read_fast_and_whole(shared_data: Path) -> None:
    path = shared_data / "zh_sentiment_100k" / "train.tsv.gz"
    dataset = open_dataset(str(path), keep=["domain"])
    blocks = list(dataset.blocks())
    assert sum(map(len, blocks)) == 95548
    assert dataset.bad_rows.total == 0
    plain = gzip.decompress(path.read_bytes()).decode().split("\n")
    for block in blocks[::5]:
        example = block[len(block) // 2]
        label, domain, text = plain[example.row - 1].split("\t")
        assert (example.labels, example.columns["domain"]) == ((label,), domain)
        if '"' not in text:
            assert example.text == text
