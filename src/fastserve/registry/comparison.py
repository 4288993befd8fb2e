"""What differs between two versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastserve.bundle.format import Manifest

_ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs, by its section (config, labels, metrics, ...) and its path there."""

    section: str
    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.section} {self.key}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that differs between two versions, and whether their weights are the same bytes."""

    before: str
    after: str
    weights_equal: bool
    changes: tuple[Change, ...]

    def section(self, name: str) -> list[Change]:
        return [change for change in self.changes if change.section == name]

    def to_json(self) -> dict[str, Any]:
        changes = [
            {"section": change.section, "key": change.key, "before": change.before, "after": change.after}
            for change in self.changes
        ]
        return {"before": self.before, "after": self.after, "weights_equal": self.weights_equal, "changes": changes}


def compare(before: Manifest, after: Manifest, names: tuple[str, str]) -> Difference:
    """The changes from `before` to `after`, called `names`."""
    left, right = _parts(before), _parts(after)
    changes = tuple(change for section in left for change in _changes(section, left[section], right[section]))
    return Difference(names[0], names[1], before.model_sha256 == after.model_sha256, changes)


def _parts(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The comparable sections of a manifest. Labels are keyed by position, data by address."""
    content = manifest.to_json()
    lineage = content["lineage"]
    return {
        "config": lineage["config"],
        "labels": {str(position): label for position, label in enumerate(content["labels"])},
        "metrics": content["metrics"],
        "text": content["text"],
        "network": {**content["network"], "multi_label": content["multi_label"], "task": content["task"]},
        "data": {source["address"]: source for source in lineage["data"]},
        "versions": {"fastserve": content["fastserve"], **lineage["versions"]},
    }


def _changes(section: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    left, right = dict(_leaves(before)), dict(_leaves(after))
    for key in sorted(left.keys() | right.keys()):
        old, new = left.get(key, _ABSENT), right.get(key, _ABSENT)
        if old != new or type(old) is not type(new):
            yield Change(section, key, old, new)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below `value` with its path; lists are compared as a whole."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value
