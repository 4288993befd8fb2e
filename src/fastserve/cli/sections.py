"""Command-line options made from a configuration section, so that a field is described once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from pydantic_core import PydanticUndefined

from fastserve.config import Section

Command = TypeVar("Command", bound=Callable[..., Any])

parallel_option = click.option(
    "--tensor-parallel",
    type=click.IntRange(min=1),
    default=1,
    help="Processes that share the network of a model that writes.",
)


def options_of(section: type[Section], *, without: Sequence[str] = ()) -> Callable[[Command], Command]:
    """A decorator that adds an option for each field: `max_texts` becomes --max-texts; checks stay with the section.

    without: fields that are given in another way.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(section.model_fields.items()):
            if name in without:
                continue
            flag = f"--{name.replace('_', '-')}"
            default = None if field.default is PydanticUndefined else field.default
            if field.annotation is bool:
                words = f"{flag}/--no-{name.replace('_', '-')}" if default else flag
                option = click.option(words, name, is_flag=True, default=default, help=field.description)
            else:
                shown = "" if default is None else f"  [default: {default}]"
                option = click.option(flag, name, default=None, help=f"{field.description or ''}{shown}")
            command = option(command)
        return command

    return decorate


def given(section: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, numbers and booleans read as such, for `config.check`."""
    import yaml

    fields = section.model_fields
    found = {
        name: value
        for name, value in values.items()
        if name in fields and value is not None and not (isinstance(value, bool) and value == fields[name].default)
    }
    return {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in found.items()}
