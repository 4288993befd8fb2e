"""A configuration with a comment for each key, made from the schema itself so that it cannot fall behind."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from fastserve.config import Config


def commented(task: str, data: str) -> str:
    """YAML with every key, its meaning above it and its default behind it."""
    given = {"task": task, "data.train": data}
    lines = ["# Every key can also be given on the command line: fastserve train THIS.yaml train.epochs=3", ""]
    return "\n".join([*lines, *_section(Config(), "", given)]) + "\n"


def _section(section: BaseModel, path: str, given: dict[str, str]) -> Iterator[str]:
    indent = "  " * path.count(".")
    for name, field in type(section).model_fields.items():
        value: Any = getattr(section, name)
        if field.description:
            yield from (f"{indent}# {line}" for line in textwrap.wrap(field.description, 100))
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _section(value, f"{path}{name}.", given)
        else:
            yield f"{indent}{name}: {_scalar(given.get(f'{path}{name}', value))}"
        if not path:
            yield ""


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return text.removesuffix("...\n").strip()
