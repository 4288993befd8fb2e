"""What is shown about a model and its versions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastserve.bundle.bundle import Bundle
from fastserve.errors import BundleError
from fastserve.registry.aliases import Move, State
from fastserve.registry.names import PRODUCTION
from fastserve.registry.store import Version


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """One version at a glance. `fault` says why its manifest cannot be read; then the rest is empty."""

    reference: str
    number: int
    path: str
    aliases: tuple[str, ...] = ()
    created: str = ""
    task: str = ""
    network: str = ""
    labels: int = 0
    metrics: dict[str, float] | None = None
    parent: str | None = None
    size_bytes: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model: its versions, newest first, where its aliases point, and how they moved (oldest first)."""

    name: str
    versions: tuple[VersionSummary, ...]
    aliases: dict[str, int]
    moves: tuple[Move, ...]

    @property
    def latest(self) -> int:
        return self.versions[0].number

    @property
    def default(self) -> int:
        """The version that the bare name means."""
        return self.aliases.get(PRODUCTION, self.latest)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "latest": self.latest,
            "default": self.default,
            "aliases": self.aliases,
            "versions": [asdict(version) for version in self.versions],
            "moves": [move.model_dump(mode="json") for move in self.moves],
        }


def summarize(version: Version, state: State) -> VersionSummary:
    """What the manifest of `version` says; its checksums are not looked at."""
    aliases = tuple(state.pointing_at(version.number))
    try:
        bundle = Bundle.load(version.path, verify=False)
        size = bundle.size_bytes()
    except (BundleError, OSError) as error:
        return VersionSummary(version.reference, version.number, str(version.path), aliases, fault=str(error))
    manifest = bundle.manifest
    return VersionSummary(
        reference=version.reference,
        number=version.number,
        path=str(version.path),
        aliases=aliases,
        created=manifest.created.isoformat(),
        task=manifest.task,
        network=manifest.network.name,
        labels=len(manifest.labels),
        metrics=manifest.metrics,
        parent=manifest.lineage.parent,
        size_bytes=size,
    )
