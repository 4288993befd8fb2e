"""What may be called what: names of models and aliases, and references such as `sentiment@production`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from fastserve.errors import ConfigError

LATEST = "latest"
PRODUCTION = "production"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RULE = "letters, digits, '.', '_' and '-', at most 100, the first a letter or digit"


@dataclass(frozen=True, slots=True)
class Reference:
    """`name` with a version number, an alias, or neither."""

    name: str
    selector: str | None = None

    @property
    def number(self) -> int | None:
        """The version number, where the selector is one."""
        return int(self.selector) if self.selector is not None and self.selector.isdecimal() else None

    def __str__(self) -> str:
        return self.name if self.selector is None else f"{self.name}@{self.selector}"


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """`name` where a model may be called that. ConfigError says the rule."""
    if not is_name(name):
        raise ConfigError(f"a model cannot be called {name!r}: expected {_RULE}")
    return name


def check_alias(alias: str) -> str:
    """`alias` where an alias may be called that. ConfigError says the rule."""
    if not is_name(alias) or alias.isdecimal():
        raise ConfigError(f"an alias cannot be called {alias!r}: expected {_RULE}, and not a number alone")
    if alias == LATEST:
        raise ConfigError(f"the alias '{LATEST}' is always the newest version and cannot be moved; choose another name")
    return alias


def parse_reference(text: str) -> Reference:
    """`name`, `name@3` or `name@alias`. ConfigError where it is none of them."""
    name, separator, selector = text.partition("@")
    if not is_name(name) or (separator and not is_name(selector)):
        raise ConfigError(f"{text!r} is not a model: expected name, name@version, name@alias or a folder")
    return Reference(name, selector if separator else None)


def looks_like_path(text: str) -> bool:
    """Whether `text` can only mean a folder."""
    return os.sep in text or text.startswith((".", "~"))
