"""Versions, aliases and what is asked about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_fakes import save_model

from fastserve import files
from fastserve.bundle.bundle import Bundle
from fastserve.errors import BundleError, ConfigError, NotFoundError, StorageError
from fastserve.registry import Registry
from fastserve.registry.aliases import State
from fastserve.registry.names import is_name, parse_reference


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions of `sentiment` and one of `topics`."""
    registry = Registry(tmp_path / "home")
    for seed in range(3):
        save_model(tmp_path / f"s{seed}", seed=seed)
        registry.publish(tmp_path / f"s{seed}", "sentiment")
    registry.publish(tmp_path / "s0", "topics")
    return registry


def test_versions_count_up_and_hold_what_was_published(registry: Registry, tmp_path: Path) -> None:
    assert [version.reference for version in registry.versions("sentiment")] == [f"sentiment@{n}" for n in (1, 2, 3)]
    for seed in range(3):
        published = Bundle.load(registry.resolve(f"sentiment@{seed + 1}"))
        original = Bundle.load(tmp_path / f"s{seed}")
        assert published.manifest == original.manifest
        np.testing.assert_array_equal(published.weights()["w"], original.weights()["w"])
        assert files.read_sums(published.folder) == files.read_sums(original.folder)


def test_the_default_home_is_that_of_the_environment(fastserve_home: Path) -> None:
    assert Registry().store.folder == fastserve_home / "models"
    assert list(Registry().list()) == []


def test_a_bare_name_is_production_else_the_newest(registry: Registry) -> None:
    assert registry.find("sentiment").number == 3
    registry.promote("sentiment@1")
    assert registry.find("sentiment").number == 1
    assert registry.find("sentiment@production").number == 1
    assert registry.find("sentiment@latest").number == 3
    registry.promote("sentiment", "candidate")
    assert registry.find("sentiment@candidate").number == 3


def test_paths_resolve_to_themselves(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.resolve(tmp_path / "s0") == tmp_path / "s0"
    assert registry.resolve(f"{tmp_path}/s0") == tmp_path / "s0"
    monkeypatch.chdir(tmp_path)
    assert registry.resolve("s0") == Path("s0")
    assert registry.resolve("./s0") == Path("s0")
    save_model(tmp_path / "sentiment")
    assert registry.resolve("sentiment") == registry.find("sentiment").path  # a published name comes first
    with pytest.raises(NotFoundError, match=r"has no fastserve\.json"):
        registry.resolve("./home")
    with pytest.raises(NotFoundError, match="does not exist"):
        registry.resolve("./nowhere")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sentimant", r"did you mean 'sentiment'\? available: sentiment, topics"),
        ("sentiment@7", "no version sentiment@7.*available: sentiment@1, sentiment@2, sentiment@3, sentiment@latest"),
        ("sentiment@prodction", "did you mean 'sentiment@production'"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(registry: Registry, reference: str, message: str) -> None:
    registry.promote("sentiment@2")
    with pytest.raises(NotFoundError, match=message.replace("sentiment@latest", "sentiment@latest")):
        registry.resolve(reference)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".hidden", "a@b", "名", "a b", "a\n", "x" * 101])
def test_names_play_no_tricks(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        registry.publish(tmp_path / "s0", name)
    assert registry.names() == ["sentiment", "topics"]


@pytest.mark.parametrize("alias", ["", "3", "latest", "../x", "a/b"])
def test_aliases_play_no_tricks(registry: Registry, alias: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        registry.promote("sentiment@1", alias)


@given(st.text(max_size=12))
def test_a_reference_is_plain_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ConfigError:
        return
    assert is_name(reference.name)
    assert str(reference) == text


def test_rollback_walks_back_through_the_promotions(registry: Registry) -> None:
    for number in (1, 3, 2):
        registry.promote(f"sentiment@{number}")
    registry.promote("sentiment@2")  # again: no move
    assert registry.rollback("sentiment").number == 3
    assert registry.rollback("sentiment").number == 1
    with pytest.raises(NotFoundError, match="never pointed at another"):
        registry.rollback("sentiment")
    registry.promote("sentiment@2")
    assert registry.rollback("sentiment").number == 1
    assert [move.kind for move in registry.show("sentiment").moves].count("rollback") == 3
    with pytest.raises(NotFoundError, match="no alias 'candidate'"):
        registry.rollback("sentiment", "candidate")


def test_rollback_skips_deleted_versions(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.promote(f"sentiment@{number}")
    registry.delete("sentiment@2")
    assert registry.rollback("sentiment").number == 1


@given(st.lists(st.one_of(st.integers(1, 5), st.none()), max_size=25))
def test_the_trail_is_a_stack_of_promotions(moves: list[int | None]) -> None:
    """A number promotes, None rolls back; a plain list does the same."""
    state, plain = State(), []
    for move in moves:
        if move is not None and (not plain or plain[-1] != move):
            state = state.moved("production", move, "promote")
            plain.append(move)
        elif move is None and len(plain) > 1:
            plain.pop()
            state = state.moved("production", plain[-1], "rollback")
    assert state.trail("production") == plain
    assert state.aliases == ({"production": plain[-1]} if plain else {})
    assert State.model_validate_json(state.model_dump_json()) == state


def test_deleting_spares_what_an_alias_points_at(registry: Registry) -> None:
    registry.promote("sentiment@3")
    with pytest.raises(ConfigError, match="sentiment@3 is 'production'"):
        registry.delete("sentiment@3")
    with pytest.raises(ConfigError, match="which version"):
        registry.delete("sentiment")
    registry.delete("sentiment@3", force=True)
    assert registry.show("sentiment").aliases == {}
    assert registry.find("sentiment").number == 2
    assert not list(registry.store.folder.glob(".tmp-*"))


def test_a_deleted_number_is_not_given_again(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        registry.delete(f"sentiment@{number}")
    assert registry.names() == ["topics"]
    assert registry.publish(tmp_path / "s1", "sentiment").number == 4


def test_lineage_walks_the_parents(registry: Registry, tmp_path: Path) -> None:
    registry.promote("sentiment@2", "base")
    child = registry.publish(tmp_path / "s1", "small", parent="sentiment@base")
    grandchild = registry.publish(tmp_path / "s2", "small", parent=child.reference)
    assert Bundle.load(grandchild.path).manifest.lineage.parent == "small@1"
    assert "small@1" in (grandchild.path / "card.md").read_text("utf-8")
    assert registry.verify("small") == {"small@1": [], "small@2": []}
    assert [ancestor.reference for ancestor in registry.lineage("small")] == ["small@2", "small@1", "sentiment@2"]
    registry.delete("sentiment@2", force=True)
    last = registry.lineage("small")[-1]
    assert (last.reference, last.lineage) == ("sentiment@2", None)
    with pytest.raises(NotFoundError, match="sentiment@9"):
        registry.publish(tmp_path / "s1", "small", parent="sentiment@9")


def test_diff_names_each_change(registry: Registry, tmp_path: Path) -> None:
    save_model(tmp_path / "other", seed=1, labels=("a", "c"))
    registry.publish(tmp_path / "other", "sentiment")
    difference = registry.diff("sentiment@2", "sentiment@4")
    assert difference.weights_equal
    assert [str(change) for change in difference.changes] == ["labels 1: b -> c"]
    difference = registry.diff("sentiment@1", "sentiment@2")
    assert not difference.weights_equal
    assert [str(change) for change in difference.section("config")] == ["config train.seed: 0 -> 1"]
    assert [change.key for change in difference.section("metrics")] == ["accuracy"]
    assert registry.diff("topics", tmp_path / "s0").changes == ()
    assert difference.to_json()["changes"][0]["section"] == "config"


def test_show_and_list(registry: Registry) -> None:
    registry.promote("sentiment@2")
    summary = registry.show("sentiment")
    assert (summary.latest, summary.default) == (3, 2)
    assert [version.number for version in summary.versions] == [3, 2, 1]
    assert summary.versions[1].aliases == ("production",)
    assert summary.versions[1].metrics == {"accuracy": 0.51}
    assert summary.versions[1].size_bytes > 200
    assert [model.name for model in registry.list()] == ["sentiment", "topics"]
    assert summary.to_json()["moves"][0]["version"] == 2
    (summary_path := Path(summary.versions[0].path) / "fastserve.json").write_text("{", "utf-8")
    assert str(summary_path) in (registry.show("sentiment").versions[0].fault or "")


def test_verify_names_the_damaged_file(registry: Registry) -> None:
    assert registry.verify() == {"sentiment@1": [], "sentiment@2": [], "sentiment@3": [], "topics@1": []}
    folder = registry.resolve("sentiment@2")
    (folder / "words.txt").write_text("坏\n", "utf-8")
    (folder / "stray.txt").write_text("x", "utf-8")
    wrong = registry.verify("sentiment")
    assert [bool(faults) for faults in wrong.values()] == [False, True, False]
    assert "words.txt is damaged" in wrong["sentiment@2"][0]
    assert "stray.txt is not listed" in wrong["sentiment@2"][1]
    with pytest.raises(BundleError, match=r"words\.txt"):
        registry.promote("sentiment@2")
    with pytest.raises(BundleError, match=r"words\.txt"):
        registry.publish(folder, "copy")
    assert "copy" not in registry.names()


def test_only_listed_files_are_published(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "s0" / "notes.txt").write_text("mine", "utf-8")
    version = registry.publish(tmp_path / "s0", "clean")
    assert not (version.path / "notes.txt").exists()
    assert registry.verify("clean") == {"clean@1": []}


def test_damaged_aliases_are_told(registry: Registry) -> None:
    registry.promote("sentiment@1")
    path = registry.store.folder / "sentiment" / "aliases.json"
    path.write_text('{"aliases": {"production": "one"}}', "utf-8")
    with pytest.raises(StorageError, match=r"aliases\.json is damaged: aliases\.production"):
        registry.find("sentiment")
    assert registry.find("sentiment@1").number == 1


def test_leftovers_are_not_seen(registry: Registry) -> None:
    (registry.store.folder / ".tmp-dead").mkdir()
    (registry.store.folder / "sentiment" / "007").mkdir()
    (registry.store.folder / "empty").mkdir()
    assert registry.names() == ["sentiment", "topics"]
    assert len(registry.versions("sentiment")) == 3
