"""Keys of the configuration that a task has no use for: they are refused, not passed over."""

from __future__ import annotations

from collections.abc import Iterable

from fastserve.config import Config, Section
from fastserve.errors import ConfigError


def refuse(config: Config, keys: Iterable[str]) -> None:
    """ConfigError for the first of `keys` (section.key, or longer) that is not what it usually is."""
    for key in keys:
        found, usual = _value(config, key), _value(Config(), key)
        if found != usual:
            raise ConfigError(
                f"{key} = {found!r} does nothing for task {config.task}: leave it out (the usual value is {usual!r})"
            )


def _value(config: Section, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
