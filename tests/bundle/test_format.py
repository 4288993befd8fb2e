"""The manifest: strict, versioned, and clear about what is wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve.bundle.format import FORMAT, UPGRADES, Manifest, NetworkSpec, ParityRow, parse_manifest, upgrade
from fastserve.errors import BundleError

PATH = Path("m/fastserve.json")


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "fastserve": "0.1.0",
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "task": "classification",
        "labels": ("a", "b"),
        "text": {"steps": ["nfkc"]},
        "network": NetworkSpec(name="bag"),
        "model_sha256": "0" * 64,
    }
    return Manifest(**{**values, **changes})


names = st.text(min_size=1, max_size=8)
scores = st.floats(0, 1, width=32)


@given(
    st.lists(names, min_size=1, max_size=4, unique=True).map(tuple),
    st.dictionaries(names, st.one_of(names, st.integers(), st.booleans(), st.none(), st.lists(names, max_size=2))),
    st.lists(st.builds(ParityRow, text=st.text(), scores=st.lists(scores, max_size=3).map(tuple)), max_size=3).map(
        tuple
    ),
)
def test_bytes_and_back(labels: tuple[str, ...], options: dict[str, Any], parity: tuple[ParityRow, ...]) -> None:
    before = manifest(labels=labels, network=NetworkSpec(name="x", options=options), parity=parity)
    assert parse_manifest(before.to_bytes(), PATH) == before


def test_a_newer_format_says_what_is_needed() -> None:
    values = {**manifest().to_json(), "format": FORMAT + 1, "fastserve": "9.9.0"}
    with pytest.raises(BundleError, match=rf"format {FORMAT + 1}.*Install FastServe 9\.9\.0 or newer"):
        parse_manifest(json.dumps(values).encode(), PATH)


def test_damaged_json_names_file_and_line() -> None:
    content = manifest().to_bytes().replace(b'"labels": [', b'"labels": [[[,')
    line = content[: content.index(b"[[[,")].count(b"\n") + 1
    with pytest.raises(BundleError, match=rf"fastserve\.json line {line} is damaged"):
        parse_manifest(content, PATH)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": "1"}', b"\xff\xfe", b"null", b"[" * 200_000])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"fastserve\.json line 1"):
        parse_manifest(content, PATH)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("colour", 1),
        ("labels", "ab"),
        ("multi_label", 1),
        ("model_sha256", "x"),
        ("created", "yesterday"),
        ("labels", ["a", "b", "a"]),
        ("task", 3),
        ("task", "os:system"),
    ],
)
def test_a_wrong_key_is_named(key: str, value: object) -> None:
    values = {**manifest().to_json(), key: value}
    with pytest.raises(BundleError, match=key):
        parse_manifest(json.dumps(values).encode(), PATH)


def test_a_runtime_file_cannot_lie_outside() -> None:
    values = {**manifest().to_json(), "runtimes": {"onnx": {"file": "../model.onnx", "passed": True}}}
    with pytest.raises(BundleError, match=r"runtimes\.onnx\.file"):
        parse_manifest(json.dumps(values).encode(), PATH)


def test_older_formats_are_upgraded_step_by_step() -> None:
    steps = {1: lambda values: {"b": values["a"] + 1}, 2: lambda values: {"c": values["b"] * 10}}
    assert upgrade({"format": 1, "a": 4}, PATH, target=3, upgrades=steps) == {"format": 3, "c": 50}
    assert upgrade({"format": 3, "c": 5}, PATH, target=3, upgrades=steps) == {"format": 3, "c": 5}
    with pytest.raises(BundleError, match="no longer reads"):
        upgrade({"format": 0}, PATH, target=3, upgrades=steps)


def test_every_older_format_has_its_upgrade() -> None:
    assert sorted(UPGRADES) == list(range(1, FORMAT))


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        manifest().task = "other"
