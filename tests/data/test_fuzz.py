"""Whatever bytes a file holds, reading ends with rows or a sentence; and pieces of any size give the same rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastserve.config import DataConfig
from fastserve.data import jsonrows
from fastserve.data.dataset import open_dataset
from fastserve.data.encodings import utf8_chunks
from fastserve.data.lines import Lines, LongLine, read_lines
from fastserve.errors import DataError, UserError

SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
SEEDS = {
    "tsv": "text\tlabel\n很好\t1\nbad\t0\n" * 3,
    "csv": 'text,label\n"a ""b"", c",1\nbad,0\n"x\ny",1\n' * 3,
    "jsonl": '{"text": "很好", "label": 1}\n{"text": "bad", "label": [0]}\n' * 3,
    "json": json.dumps([{"text": "good", "label": 1}, {"text": "bad", "label": "0"}] * 3, indent=1),
    "txt": "__label__1 good\n__label__0 bad\n" * 3,
}


def read_all(path: Path) -> None:
    config = DataConfig(bad_rows=10**6, max_row_bytes=200)
    try:
        rows = sum(len(block) for block in open_dataset(str(path), config, labelled=None).blocks())
        assert rows > 0
    except UserError as error:
        if str(path) not in str(error):
            raise


@pytest.mark.parametrize("kind", SEEDS)
@given(seed=st.integers(0, 2**32 - 1), changes=st.integers(1, 12))
@SETTINGS
def test_damaged_files_give_rows_or_a_sentence(tmp_path: Path, kind: str, seed: int, changes: int) -> None:
    generator = random.Random(seed)
    content = bytearray(SEEDS[kind].encode())
    for _ in range(changes):
        place = generator.randrange(len(content))
        piece = generator.choice(
            [b'"', b"\n", b"\t", b",", b"{", b"]", b"\\", b"\x00", b"\xff", b"", b"x" * 300, b"\r"]
        )
        content[place : place + generator.randrange(3)] = piece
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    read_all(path)


@pytest.mark.parametrize("name", [f"a.{kind}{packing}" for kind in SEEDS for packing in ("", ".gz", ".zst")])
@given(content=st.binary(max_size=200))
@SETTINGS
def test_rubbish_gives_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    read_all(path)


@given(st.text('[]{}",: \n1好a', max_size=60), st.integers(1, 9))
def test_an_array_in_pieces_is_the_array(inner: str, size: int) -> None:
    data = json.dumps([{"text": inner, "label": 1}, {"text": "x", "label": [2]}, 7], ensure_ascii=False).encode()
    chunks = (data[start : start + size] for start in range(0, len(data), size))
    blocks = list(jsonrows.read_array(chunks, "a.json", ["text"], 1000))
    assert [cell for block in blocks for cell in block.columns["text"]] == [inner, "x"]
    assert [bad.detail for block in blocks for bad in block.bad] == ["'7'"]


@given(
    st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b""))), st.integers(1, 20)
)
def test_lines_in_pieces_keep_their_numbers(lines: list[bytes], size: int) -> None:
    data = b"\n".join(lines)
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    found: dict[int, bytes] = {}
    for block in read_lines(pieces, 8):
        if isinstance(block, LongLine):
            found[block.row] = b"long"
        else:
            assert block.data.count(b"\n") == block.count
            found.update(enumerate(block.data.split(b"\n")[:-1], start=block.first))
    expected = {row: line if len(line) < 8 else b"long" for row, line in enumerate(lines, start=1)}
    last = max((row for row, line in expected.items() if line), default=0)
    assert {row: line for row, line in found.items() if row <= last} == {r: e for r, e in expected.items() if r <= last}
    assert not any(line for row, line in found.items() if row > last)  # blank lines at the end may be left out


def test_a_mark_at_the_beginning_alone_is_taken_away() -> None:
    assert b"".join(utf8_chunks([b"\xef\xbb\xbfa\xef\xbb\xbf"], "f")) == b"a\xef\xbb\xbf"
    with pytest.raises(DataError, match="f is empty"):
        list(utf8_chunks([], "f"))
    assert isinstance(next(read_lines([b"a\n"], 9)), Lines)
