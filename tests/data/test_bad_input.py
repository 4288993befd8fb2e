"""Every bad file gets a sentence that names it and what to do, quickly, and in little memory."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fastserve.config import DataConfig
from fastserve.data import formats, sources
from fastserve.data.dataset import Dataset, open_dataset
from fastserve.errors import DataError, MissingExtraError

GOOD = "text\tlabel\n" + "".join(f"good row {i}\t{i % 2}\n" for i in range(200))


def save(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(address: str, **settings: object) -> Dataset:
    dataset = open_dataset(address, DataConfig.model_validate(settings))
    for _ in dataset.blocks():
        pass
    return dataset


REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("a.csv", "", "a.csv is empty"),
    "empty gz": ("a.tsv.gz", gzip.compress(b""), "a.tsv.gz is empty"),
    "only blank lines": ("a.tsv", "\n\n\n", "a.tsv is empty"),
    "empty txt": ("a.txt", "", "a.txt is empty"),
    "empty jsonl": ("a.jsonl", "", "a.jsonl is empty"),
    "header only": ("a.tsv", "text\tlabel\n", "has no row: it is empty or holds only a header"),
    "binary": ("a.csv", random.Random(0).randbytes(100_000), "a.csv is not text"),
    "zeros": ("a.tsv", bytes(10_000), "a.tsv is not text"),
    "excel": ("a.csv", b"PK\x03\x04" + bytes(100), "an Excel file; save it as csv"),
    "gzip under a plain name": ("a.csv", gzip.compress(b"x" * 99), "it looks like a gzip file; name it .gz"),
    "plain under a gzip name": ("a.csv.gz", "text,label\na,b\n", "not a whole gzip file"),
    "plain under a zst name": ("a.csv.zst", "text,label\na,b\n", "not a whole Zstandard file"),
    "GBK": ("a.tsv", "文本\t标签\n很好的书\t好\n太差了\t差\n".encode("gb18030"), "looks like GB18030: iconv"),
    "no label column": ("a.csv", "text,uid\nsome words here,1\nother words there,2\n", "no column looks like labels"),
    "unknown suffix": ("a.xyz", "x", "its suffix names no format; expected csv, tsv"),
    "json object": ("a.json", '{"data": [1, 2],\n "version": 3}', "not an array of objects.*keys data, version"),
    "json number": ("a.json", "17", "not an array of objects"),
    "json cut": ("a.json", '[{"text": "a", "label": "b"},\n {"text": "c"', "line 2 is not valid JSON"),
    "json of words": ("a.json", '["a", "b"]', "has no row that is a JSON object"),
    "json too deep": ("a.json", "[" * 100_000, "nested too deep"),
    "jsonl of lists": ("a.jsonl", "[1]\n[2]\n", "has no row that is a JSON object"),
    "jsonl too deep": ("a.jsonl", '{"a":' * 100_000 + "\n", "has no row that is a JSON object"),
    "no parquet": ("a.parquet", b"PAR1 something else", "not a whole parquet file"),
    "parquet in gz": ("a.parquet.gz", b"x", "parquet compresses inside"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hopeless_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    name, content, expected = REFUSED[case]
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=expected) as caught:
        read(save(tmp_path, name, content))
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "pack"), [("a.tsv.gz", gzip.compress), ("a.tsv.zst", zstandard.compress)])
def test_a_cut_archive_is_refused(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    noise = "".join(f"{random.Random(i).randbytes(40).hex()}\t{i % 2}\n" for i in range(20_000))
    packed = pack(("text\tlabel\n" + noise).encode())
    assert read(save(tmp_path, name, packed)).rows == 20_000
    for cut in (len(packed) - 1, len(packed) - 5, len(packed) // 2, 30):
        with pytest.raises(DataError, match=f"{name}.*(is cut short|not a whole|is empty)"):
            read(save(tmp_path, name, packed[:cut]))


def test_archives_of_several_parts_are_one_content(tmp_path: Path) -> None:
    half = len(GOOD) // 2
    parts = GOOD[:half].encode(), GOOD[half:].encode()
    for name, pack in (("a.tsv.gz", gzip.compress), ("a.tsv.zst", zstandard.compress)):
        assert read(save(tmp_path, name, b"".join(map(pack, parts)))).rows == 200


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(GOOD.encode()))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(DataError, match="not a whole gzip file"):
        read(save(tmp_path, "a.tsv.gz", bytes(packed)))


BAD_ROWS: dict[str, tuple[str, bytes, int, str]] = {
    "invalid UTF-8 in tsv": ("a.tsv", b"caf\xe9\t1\n", 202, "not valid UTF-8"),
    "invalid UTF-8 in csv": ("a.csv", b"caf\xe9,1\n", 202, "not valid UTF-8"),
    "invalid UTF-8 in jsonl": ("a.jsonl", b'{"text": "caf\xe9", "label": 1}\n', 201, "not valid UTF-8"),
    "invalid UTF-8 in txt": ("a.txt", b"__label__1 caf\xe9\n", 201, "not valid UTF-8"),
    "few fields": ("a.tsv", b"only text\n", 202, "wrong number of fields"),
    "many fields": ("a.csv", b"a,b,c\n", 202, "wrong number of fields"),
    "empty text": ("a.tsv", b"  \t1\n", 202, "empty text"),
    "empty label": ("a.tsv", b"words\t\n", 202, "no label"),
    "NaN label": ("a.tsv", b"words\tNaN\n", 202, "no label"),
    "NaN in jsonl": ("a.jsonl", b'{"text": "words", "label": NaN}\n', 201, "no label"),
    "null in jsonl": ("a.jsonl", b'{"text": "words", "label": null}\n', 201, "no label"),
    "no key in jsonl": ("a.jsonl", b'{"text": "words"}\n', 201, "no label"),
    "text is a list": ("a.jsonl", b'{"text": ["words"], "label": 1}\n', 201, "text is not a string"),
    "half a character": ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', 201, "text is not a string"),
    "label is an object": ("a.jsonl", b'{"text": "words", "label": {"a": 1}}\n', 201, "no label"),
    "not JSON": ("a.jsonl", b'{"text": "words", \n', 201, "not a JSON object"),
    "not an object": ("a.jsonl", b"17\n", 201, "not a JSON object"),
    "a huge number": ("a.jsonl", b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n", 201, "not a JSON object"),
    "blank line": ("a.tsv", b"\n", 202, "empty line"),
    "blank line in csv": ("a.csv", b"\n", 202, "empty line"),
    "open quote": ("a.csv", b'"words,1\n', 202, "quote not closed"),
    "no fastText label": ("a.txt", b"words\n", 201, "no label"),
}


def good_rows(name: str) -> bytes:
    rows = [(f"good row {i}", i % 2) for i in range(200)]
    kind = name.partition(".")[2]
    if kind == "jsonl":
        return "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows).encode()
    if kind == "txt":
        return "".join(f"__label__{y} {t}\n" for t, y in rows).encode()
    return (GOOD if kind == "tsv" else GOOD.replace("\t", ",")).encode()


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_counted_listed_and_skipped(tmp_path: Path, case: str) -> None:
    name, line, row, reason = BAD_ROWS[case]
    content = good_rows(name)
    after = content.splitlines(keepends=True)[-1]
    path = save(tmp_path, name, content + line + after * 2)
    dataset = read(path)
    assert dataset.rows == 202
    assert [(bad.row, bad.reason) for bad in dataset.bad_rows.listed] == [(row, reason)]
    with pytest.raises(DataError, match=rf"1 of .* allowed are 0 .*{reason}") as caught:
        read(path, bad_rows=0)
    assert f"row {row}" in str(caught.value)


def test_the_limit_is_a_number_or_a_share(tmp_path: Path) -> None:
    path = save(tmp_path, "a.tsv", GOOD + "\t1\n" * 5)
    assert read(path, bad_rows=5).bad_rows.total == 5
    assert read(path, bad_rows=0.03).bad_rows.counts == {"empty text": 5}
    for limit in (4, 0.01):
        with pytest.raises(DataError, match="5 of 205 rows"):
            read(path, bad_rows=limit)


def test_a_share_is_not_judged_by_the_first_rows(tmp_path: Path) -> None:
    rows = "".join(f"a long enough row number {i} that fills blocks\t{i % 2}\n" for i in range(60_000))
    assert read(save(tmp_path, "a.tsv", "text\tlabel\n" + "\t1\n" * 500 + rows)).bad_rows.total == 500
    hopeless = save(tmp_path, "b.tsv", "text\tlabel\n" + "words\t\n" * 400_000 + rows)
    with pytest.raises(DataError, match="rows so far cannot be used"):
        open_columns(hopeless)


def open_columns(path: str) -> Dataset:
    return read(path, columns={"text": "text", "label": "label"})


def test_only_the_first_bad_rows_are_kept(tmp_path: Path) -> None:
    path = save(tmp_path, "a.tsv", GOOD + "\t1\n" * 300)
    dataset = read(path, bad_rows=300)
    assert (dataset.bad_rows.total, len(dataset.bad_rows.listed)) == (300, 50)
    assert "and 295 more" in dataset.bad_rows.describe()


def test_wrong_columns_are_answered_with_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path, "a.tsv", GOOD)
    with pytest.raises(DataError, match="no column 'labels': did you mean 'label'\\? available: label, text"):
        read(path, columns={"label": "labels"})
    with pytest.raises(DataError, match="no column 'Text'"):
        read(path, columns={"text": "Text"})
    with pytest.raises(DataError, match="cannot be both"):
        read(path, columns={"text": "label", "label": "label"})
    with pytest.raises(DataError, match="no column 'domian'"):
        open_dataset(path, keep=["domian"])


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    save(tmp_path, "reviews.tsv", GOOD)
    with pytest.raises(DataError, match=r"there is no file .*review\.tsv: did you mean 'reviews\.tsv'\?"):
        read(str(tmp_path / "review.tsv"))
    with pytest.raises(DataError, match=r"is a folder.*It has reviews\.tsv"):
        read(str(tmp_path))
    with pytest.raises(DataError, match=r"no file matches .*\*\.csv"):
        read(str(tmp_path / "*.csv"))
    with pytest.raises(DataError, match="no file"):
        read(str(tmp_path / "absent" / "reviews.tsv"))
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(DataError, match="not a regular file"):
        read(str(tmp_path / "pipe.tsv"))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "a.tsv", GOOD)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"a\.tsv cannot be read: Permission denied"):
        next(sources.read_chunks(sources.Source(path, "tsv")))


def test_byte_order_marks_and_utf16(tmp_path: Path) -> None:
    texts = GOOD.replace("good", "很好")
    for name, content in {
        "bom.tsv": codecs.BOM_UTF8 + texts.encode(),
        "le.tsv": codecs.BOM_UTF16_LE + texts.encode("utf-16-le"),
        "be.tsv": codecs.BOM_UTF16_BE + texts.encode("utf-16-be"),
        "bare.tsv": texts.encode("utf-16-le"),
    }.items():
        dataset = open_dataset(save(tmp_path, name, content))
        assert [e.text for e in dataset][:2] == ["很好 row 0", "很好 row 1"]
        assert dataset.available == ["text", "label"]


def test_line_ends_of_windows(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.csv", "a.jsonl", "a.txt"):
        dataset = open_dataset(save(tmp_path, name, good_rows(name).replace(b"\n", b"\r\n")))
        assert [(e.text, e.labels) for e in dataset][-1] == ("good row 199", ("1",))


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.parquet", "fsspec", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"fastserve-lm\[parquet\]"):
        read(save(tmp_path, "a.parquet", b"PAR1"))
    with pytest.raises(MissingExtraError, match=r"fastserve-lm\[remote\]"):
        read("s3://bucket/a.tsv")
    with pytest.raises(DataError, match=r"there is no file owner/name.*fastserve-lm\[remote\]"):
        read("owner/name")


def test_an_unknown_protocol_is_a_sentence() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match="cannot be reached"):
        read("nothing://a/b.tsv")


def test_remote_files_and_globs_are_read() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/a.tsv", GOOD.encode())
    memory.pipe("/set/b.tsv.gz", gzip.compress(GOOD.encode()))
    memory.pipe("/set/c.tsv.zst", zstandard.compress(GOOD.encode()))
    assert read("memory://set/a.tsv").rows == 200
    dataset = read("memory://set/*.tsv*")
    assert (dataset.rows, len(dataset.files)) == (600, 3)
    with pytest.raises(DataError, match="cannot be read"):
        read("memory://set/absent.tsv")


def test_a_hub_name_without_network_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nlong details")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"there is no file owner/name, and .*Couldn't reach the hub$"):
        read("owner/name")


LONG_LINE = """
import resource, sys
from fastserve.config import DataConfig
from fastserve.data.dataset import open_dataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = open_dataset(sys.argv[1], DataConfig(columns={"text": "text", "label": "label"}))
rows = [example.row for example in dataset]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bad = dataset.bad_rows.listed[0]
print(len(rows), rows[-1], bad.row, bad.reason, (after - before) // 1024, sep="|")
"""


def open_for_writing(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wb", compresslevel=1)
    return zstandard.open(path, "wb") if path.suffix == ".zst" else path.open("wb")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.tsv.gz", "a.tsv.zst"])
def test_a_line_of_100_megabytes_is_a_bad_row_and_never_in_memory(tmp_path: Path, name: str) -> None:
    kind = name.removesuffix(".gz").removesuffix(".zst")
    good = good_rows(kind)
    body = b"x" * (1 << 20)
    with open_for_writing(tmp_path / name) as file:
        file.write(good)
        for _ in range(100):
            file.write(body)
        file.write(b"\n" + good.splitlines(keepends=True)[-1])
    done = subprocess.run(
        [sys.executable, "-c", LONG_LINE, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    rows, last, bad, reason, megabytes = done.stdout.strip().split("|")
    header = kind != "a.jsonl"
    assert (int(rows), int(bad), int(last)) == (201, 201 + header, 202 + header)
    assert reason == "line too long"
    assert int(megabytes) < 40


def test_the_limit_of_a_row_is_the_users(tmp_path: Path) -> None:
    path = save(tmp_path, "a.tsv", GOOD + "w" * 150 + "\t1\n")
    assert read(path, max_row_bytes=100).bad_rows.counts == {"line too long": 1}
    assert read(path, max_row_bytes=153).bad_rows.total == 0
    with pytest.raises(DataError, match=r"no line of at most 5 bytes"):
        read(path, max_row_bytes=5)
    path = save(tmp_path, "b.tsv", "text of a long name\tlabel\n" + "a\tb\n" * 9)
    with pytest.raises(DataError, match=r"first line is over 9 bytes"):
        read(path, max_row_bytes=9)


def test_a_json_object_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "a.json", json.dumps([{"text": "w" * 3_000_000, "label": 1}]))
    with pytest.raises(DataError, match=r"line 1: no whole object in 1,000 bytes"):
        read(path, max_row_bytes=1000)


def test_columns_differ_between_files_of_a_glob(tmp_path: Path) -> None:
    save(tmp_path, "a.tsv", GOOD)
    save(tmp_path, "b.tsv", GOOD.replace("label", "labels", 1))
    with pytest.raises(DataError, match=r"b\.tsv has no column 'label', which .*a\.tsv has: did you mean 'labels'"):
        read(str(tmp_path / "*.tsv"))


def test_reading_from_two_threads_is_independent(tmp_path: Path) -> None:
    path = save(tmp_path, "a.tsv", GOOD)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(read(path).rows)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 4


def test_fasttext_labels_are_parted() -> None:
    assert formats.split_fasttext("__label__a __label__b  some text") == ("some text", ["a", "b"])
    assert formats.split_fasttext("no label") == ("no label", None)
