"""The quality report finds what was put in, names the rows, and keeps its time on real data."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.data.dataset import open_dataset
from fastserve.data.near import CUT, jaccard, near_duplicates, signatures
from fastserve.data.quality import check
from fastserve.errors import DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz的一是了我不人在他有这个上们来到时"


def sentence(seed: int, length: int = 60) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length))


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), "utf-8")
    return path


def test_everything_is_found_with_its_rows(tmp_path: Path) -> None:
    rows = [(sentence(i), "ab"[i % 2]) for i in range(400)]
    rows[10] = (rows[3][0].upper() + " ", "b")  # row 12 repeats row 5
    rows[20] = (rows[4][0], "b")  # row 22 contradicts row 6
    rows[30] = (rows[5][0][:-1] + "!", "b")  # row 32 is nearly row 7
    rows[40] = ("broken \ufffd text here", "a")
    rows[41] = ("è¿\x99æ˜¯ wrongly decoded", "a")
    rows[42] = ("fish &amp; chips &#39;", "a")
    rows[43] = ("锟斤拷锟斤拷锟斤拷", "a")
    rows[50] = ("", "a")
    rows[51] = ("fine", "")
    train = write(tmp_path / "a.tsv", rows)
    other = write(tmp_path / "b.tsv", [(rows[7][0], "b"), (rows[8][0][:-1] + "?", "a"), (sentence(999), "a")])
    report = check(open_dataset(str(train)), open_dataset(str(other)), language=lambda texts: f"made of {len(texts)}")
    assert report.rows == 398
    assert report.bad_rows["reasons"] == {"empty text": 1, "no label": 1}
    assert [row["row"] for row in report.bad_rows["listed"]] == [52, 53]
    assert (report.duplicates.count, report.duplicates.examples[0]["rows"]) == (2, [5, 12])
    assert [example["rows"] for example in report.contradictions.examples] == [[6, 22]]
    assert [example["rows"] for example in report.near_duplicates.examples] == [[7, 32]]
    assert report.leakage is not None
    assert [example["rows"] for example in report.leakage.examples] == [[9, 2]]
    assert report.near_leakage is not None
    assert [example["rows"] for example in report.near_leakage.examples] == [[10, 3]]
    assert {kind: finding.examples[0]["rows"] for kind, finding in report.damage.items()} == {
        "replacement characters": [42],
        "wrongly decoded text": [43],
        "HTML entities": [44],
    }
    assert report.damage["wrongly decoded text"].count == 2
    assert report.labels == {"a": 198, "b": 200}
    assert sum(count for _, _, count in report.histogram) == 398
    assert report.language == "made of 398"
    assert json.loads(json.dumps(report.to_json()))["lengths"]["50"] == 60
    text = str(report)
    for part in (
        "398 usable rows, 2 bad rows",
        "row 52",
        "row 6, 22  a, b",
        "similarity 0.",
        "HTML entities: 1 (0.25%)",
    ):
        assert part in text


def test_good_french_german_and_swedish_are_not_called_damaged(tmp_path: Path) -> None:
    texts = [
        "voilà «été»",
        "é\u00a0» fin",
        "Straße für ä und ö",
        "på ön är å",
        "L’été… “café” – déjà",
        "&",
        "AT&T; R&D",
    ]
    path = write(tmp_path / "a.tsv", [(text, "ab"[i % 2]) for i, text in enumerate(texts)])
    assert check(open_dataset(str(path))).damage == {}


def test_a_file_of_bad_rows_is_reported_not_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", [("", "a")] * 50 + [("good", "a")])
    report = check(open_dataset(str(path)))
    assert (report.rows, report.bad_rows["total"]) == (1, 50)
    with pytest.raises(DataError, match="no usable row: 5 x empty text"):
        check(open_dataset(str(write(tmp_path / "b.tsv", [("", "a")] * 5))))


def test_texts_without_labels_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one line\nanother\none line\n", "utf-8")
    report = check(open_dataset(str(path), labelled=False))
    assert (report.duplicates.count, report.contradictions.count, report.labels) == (1, 0, {})


@given(st.lists(st.text("abc", min_size=0, max_size=30), max_size=25, unique=True))
def test_whatever_is_reported_is_near_by_the_plain_definition(forms: list[str]) -> None:
    for earlier, later, similarity in near_duplicates(forms):
        assert earlier < later
        assert similarity == jaccard(forms[earlier], forms[later]) >= 0.8


def test_nearly_all_near_duplicates_are_found() -> None:
    forms = [sentence(i, 100) for i in range(300)]
    changed = [form[:50] + "#" + form[51:] for form in forms]
    forms += changed  # similarity (97 - 4) / (97 + 4) = 0.92
    found = near_duplicates(forms)
    assert len(found) >= 297
    assert all(later - earlier == 300 for earlier, later, _ in found)


def test_a_signature_estimates_the_similarity() -> None:
    one, other = sentence(1, 400), sentence(1, 400)[:300] + sentence(2, 100)
    estimate = (signatures([one])[0] == signatures([other])[0]).mean()
    assert abs(estimate - jaccard(one, other)) < 0.2
    assert np.array_equal(signatures([one, other])[1], signatures([other])[0])


def test_a_crowd_of_like_texts_stays_cheap() -> None:
    forms = [sentence(0, CUT)[:-6] + f"{i:06d}" for i in range(1000)]
    start = time.perf_counter()
    assert len(near_duplicates(forms)) == 999
    assert time.perf_counter() - start < 20


def test_real_data(shared_data: Path) -> None:
    folder = shared_data / "en_trec"
    report = check(open_dataset(str(folder / "train.tsv.gz")))
    assert (report.rows, report.duplicates.count, len(report.labels)) == (5452, 72, 6)
