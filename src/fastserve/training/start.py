"""The model that a run goes on from: `model.start`."""

from __future__ import annotations

from fastserve.bundle.bundle import Bundle
from fastserve.config import Config, home
from fastserve.errors import ConfigError
from fastserve.registry import Registry


def start_of(config: Config) -> Bundle | None:
    """The model that `model.start` names, or None. NotFoundError where there is none of that name.

    ConfigError where a network is named beside it, which could only be another one.
    """
    if config.model.start is None:
        return None
    if config.model.network != "auto":
        raise ConfigError(
            f"model.start '{config.model.start}' brings its own network: leave model.network "
            f"('{config.model.network}') out"
        )
    return Bundle.load(Registry(home()).resolve(config.model.start))


def reference_of(start: Bundle) -> str:
    """What a lineage calls it: name@version, or the folder of a model that is not published."""
    folder = start.folder
    is_published = folder.parent.parent == Registry(home()).store.folder
    return f"{folder.parent.name}@{folder.name}" if is_published else str(folder)
