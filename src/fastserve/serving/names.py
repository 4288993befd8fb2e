"""Under which name each model is served."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fastserve.errors import ConfigError
from fastserve.serving.model import Named

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def name_models(words: Sequence[str]) -> list[Named]:
    """`MODEL` or `NAME=MODEL`: the name is the model's own, or the folder's, or the one that is given."""
    if not words:
        raise ConfigError("no model is named: expected `fastserve serve MODEL...`")
    named = [_name_model(word) for word in words]
    for position, model in enumerate(named):
        if any(model.name == earlier.name for earlier in named[:position]):
            raise ConfigError(f"two models would be served as '{model.name}'; give one another name: NAME=MODEL")
    return named


def _name_model(word: str) -> Named:
    name, separator, reference = word.partition("=")
    if not separator:
        reference = word
        path = Path(word)
        name = path.resolve().name if path.is_dir() else word.partition("@")[0].rstrip("/").rpartition("/")[2]
        if path.is_dir() and name.isdecimal():
            name = path.resolve().parent.name  # a version folder of the registry
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{word}' cannot be served as '{name}': a name has letters, digits, '.', '_' and '-'; "
            f"give one: NAME={reference}"
        )
    return Named(name, reference)
