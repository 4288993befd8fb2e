"""Splits: stratified, by seed alone, no text on two sides, leaks dropped, refused or kept as asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.config import DataConfig
from fastserve.data import split as split_module
from fastserve.data.keys import first_of_each, is_among, same_form, same_forms
from fastserve.data.split import Splits, _first_of_kinds, auto_rows, load_splits, stratified
from fastserve.errors import DataError


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=200), st.integers(1, 60))
def test_equal_texts_stay_together_and_kinds_keep_their_share(rows: list[tuple[int, int]], count: int) -> None:
    keys, kinds = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    kinds = kinds[np.unique(keys, return_index=True)[1]][np.unique(keys, return_inverse=True)[1]]  # one kind a key
    taken = stratified(keys, kinds, count, seed=1)
    assert not set(keys[taken]) & set(keys[~taken])
    texts = {kind: set(keys[kinds == kind]) for kind in set(kinds.tolist())}
    for kind, all_of_kind in texts.items():
        got = len(set(keys[taken & (kinds == kind)]))
        wanted = count * len(set(keys)) / len(keys) * len(all_of_kind) / len(set(keys))
        assert got <= max(len(all_of_kind) - 1, 0)
        assert abs(got - min(wanted, len(all_of_kind) - 1)) <= 2


@given(st.lists(st.integers(0, 4), max_size=60), st.lists(st.integers(0, 9), min_size=5, max_size=5), st.integers(1, 9))
def test_the_first_of_each_kind_are_those_of_a_stable_sort(kinds: list[int], quota: list[int], at_once: int) -> None:
    kind, most = np.array(kinds, np.uint8), np.array(quota)
    order = np.random.default_rng(0).permutation(len(kinds))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_module, "_AT_ONCE", at_once)
        found = _first_of_kinds(order, kind, most)
    by_kind = order[np.argsort(kind[order], kind="stable")]
    expected = [by_kind[kind[by_kind] == k][:count] for k, count in enumerate(quota)]
    assert sorted(found.tolist()) == sorted(np.concatenate(expected).tolist())


@given(st.lists(st.text(max_size=8), max_size=20))
@settings(deadline=None)
def test_the_form_of_many_is_the_form_of_each(texts: list[str]) -> None:
    many = [*texts, *["long " * 10_000] * 2]  # enough for the table
    assert same_forms(many) == [same_form(text.replace("\x00", "")) for text in many]


def test_the_form_of_every_character_beside_every_kind_of_neighbor() -> None:
    characters = [chr(code) for code in range(1, 0x20400) if not 0xD800 <= code < 0xE000]
    for before, after in (("", ""), ("a", "b"), ("e\u0301", "\u0302"), ("\u1100", "\u1161"), ("\uac00", "\u11a8")):
        texts = [f"{before}{character}{after}" for character in characters]
        assert same_forms(texts) == [same_form(text) for text in texts]


@given(st.lists(st.integers(-3, 3)), st.lists(st.integers(-3, 3)))
def test_keys_are_looked_up_as_numpy_does(keys: list[int], wanted: list[int]) -> None:
    these, those = np.array(keys, np.int64), np.array(wanted, np.int64)
    assert np.array_equal(is_among(these, those), np.isin(these, those))
    assert np.flatnonzero(first_of_each(these)).tolist() == sorted(np.unique(these, return_index=True)[1].tolist())


def test_same_form_ignores_width_case_and_space() -> None:
    assert same_form("ＡＢＣ　很 好\n") == same_form("abc很好")


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), "utf-8")
    return str(path)


ROWS = [(f"text number {i} of all", "abc"[i % 3 if i % 10 else 0]) for i in range(1000)]


def texts(splits: Splits) -> tuple[list[str], list[str]]:
    assert splits.validation is not None
    train = [text for block in splits.train.blocks() for text in block.texts]
    return train, [text for block in splits.validation.blocks() for text in block.texts]


def test_auto_takes_200_of_1000_rows_and_the_seed_decides(tmp_path: Path) -> None:
    config = DataConfig(train=write(tmp_path / "a.tsv", ROWS))
    splits = load_splits(config, 0)
    train, validation = texts(splits)
    assert sorted(train + validation) == sorted(text for text, _ in ROWS)
    assert len(validation) == len(splits.validation or ()) == 200
    assert texts(load_splits(config, 0)) == (train, validation)
    assert texts(load_splits(config, 1)) != (train, validation)
    assert splits.labels == ["a", "b", "c"]
    whole = splits.train.index.label_counts
    assert splits.validation is not None
    for label, count in splits.validation.label_counts.items():
        assert abs(count - whole[label] / 5) <= 1


@pytest.mark.parametrize(("rows", "expected"), [(10, 2), (890, 178), (6_000, 300), (95_000, 2_000)])
def test_how_many_rows_auto_holds_out(rows: int, expected: int) -> None:
    assert auto_rows(rows) == expected


def test_the_split_does_not_depend_on_the_process(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", ROWS)
    code = (
        "import sys; from fastserve.config import DataConfig; from fastserve.data.split import load_splits\n"
        "v = load_splits(DataConfig(train=sys.argv[1]), 5).validation\n"
        "print([int(r) for b in v.blocks() for r in b.rows])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_duplicates_within_a_file_are_never_on_both_sides(tmp_path: Path) -> None:
    rows = [(f"text {i % 50}", "ab"[i % 2]) for i in range(500)]
    train, validation = texts(load_splits(DataConfig(train=write(tmp_path / "a.tsv", rows), validation=0.3), 0))
    assert len(train) + len(validation) == 500
    assert not set(train) & set(validation)


def test_texts_of_other_files_are_dropped_refused_or_kept(tmp_path: Path) -> None:
    train = write(tmp_path / "a.tsv", ROWS)
    held = write(tmp_path / "v.tsv", [("TEXT number 5  of all", "c"), ("new", "a")])
    test = write(tmp_path / "t.tsv", [("text number 7 of all", "b")])
    splits = load_splits(DataConfig(train=train, validation=held, test=test), 0)
    assert (splits.leaked, len(splits.train)) == (2, 998)
    assert splits.to_json()["rows"] == {"train": 998, "validation": 2, "test": 1}
    kept = load_splits(DataConfig(train=train, validation=held, test=test, duplicates="keep"), 0)
    assert (kept.leaked, len(kept.train)) == (2, 1000)
    with pytest.raises(DataError, match=r"2 training texts are also in .* \(rows 7, 9\)"):
        load_splits(DataConfig(train=train, validation=held, test=test, duplicates="refuse"), 0)


def test_validation_that_is_split_off_does_not_meet_the_test_file(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.tsv", ROWS), write(tmp_path / "t.tsv", ROWS[:400])
    splits = load_splits(DataConfig(train=train, test=test), 0)
    assert {text for part in texts(splits) for text in part} == {text for text, _ in ROWS[400:]}


def test_a_label_that_training_lacks_is_a_bad_row(tmp_path: Path) -> None:
    train = write(tmp_path / "a.tsv", ROWS)
    held = write(tmp_path / "v.tsv", [("one", "a"), ("two", "strange")])
    with pytest.raises(DataError, match="label not in the training data: strange"):
        load_splits(DataConfig(train=train, validation=held, bad_rows=0), 0)
    splits = load_splits(DataConfig(train=train, validation=held, bad_rows=1), 0)
    assert len(splits.validation or ()) == 1


def test_too_little_to_learn_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 9 rows have the same label 'x'"):
        load_splits(DataConfig(train=write(tmp_path / "a.tsv", [(f"t {i}", "x") for i in range(9)])), 0)
    with pytest.raises(DataError, match="different values in 1,500 rows"):
        load_splits(DataConfig(train=write(tmp_path / "b.tsv", [(f"t {i}", f"v{i}") for i in range(1500)])), 0)
    both = write(tmp_path / "c.tsv", ROWS[:20])
    with pytest.raises(DataError, match="only 0 rows"):
        load_splits(DataConfig(train=both, test=both), 0)


def test_small_files_are_read_once_and_large_ones_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", ROWS)
    splits = load_splits(DataConfig(train=path), 0)
    expected = texts(splits)
    write(tmp_path / "a.tsv", ROWS[:500])
    assert texts(splits) == expected
    splits.train.dataset._kept = None
    with pytest.raises(DataError, match="changed while it was used: it had 1,000 usable rows, now it has 500"):
        texts(splits)
    dataset = splits.train.dataset
    dataset.remember, dataset._kept = 100, None
    assert [len(list(dataset)) for _ in range(2)] == [500, 500]
    assert dataset._kept is None


def test_no_validation_when_none_is_wanted(tmp_path: Path) -> None:
    splits = load_splits(DataConfig(train=write(tmp_path / "a.tsv", ROWS), validation=0), 0)
    assert (splits.validation, len(splits.train)) == (None, 1000)
