"""Where a model comes from: the configuration and the data of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from fastserve import files
from fastserve.bundle.format import DataSource, Lineage
from fastserve.config import Config, DataConfig
from fastserve.data.sources import find_sources

LIBRARIES = ("torch", "numpy", "tokenizers", "rjieba", "safetensors", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from. started: when the command began, or the first of those that were resumed."""

    config: Config
    sources: Sequence[DataSource]
    started: datetime

    def lineage(self) -> Lineage:
        return Lineage(
            data=tuple(self.sources),
            config=self.config.to_json(),
            versions={"python": python_version(), **{name: metadata.version(name) for name in LIBRARIES}},
            seed=self.config.train.seed,
            started=self.started.replace(microsecond=0),
            duration_seconds=round((datetime.now(UTC) - self.started).total_seconds(), 2),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config.to_json(),
            "sources": [source.model_dump(mode="json") for source in self.sources],
            "started": self.started.isoformat(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Origin:
        sources = [DataSource(**source) for source in value["sources"]]
        return cls(Config.model_validate(value["config"]), sources, datetime.fromisoformat(value["started"]))


def describe_sources(config: DataConfig) -> list[DataSource]:
    """The files that a run learns from, with their checksums where they are local."""
    validation = config.validation if isinstance(config.validation, str) and config.validation != "auto" else None
    return [
        DataSource(address=source.address, sha256=_sha256(source.address))
        for address in (config.train, validation, config.test)
        if address is not None
        for source in find_sources(address)
    ]


def _sha256(address: str) -> str | None:
    path = Path(address)
    return files.sha256(path) if path.is_file() else None
