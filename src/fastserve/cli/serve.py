"""`fastserve serve`."""

from __future__ import annotations

from typing import Any

import click

from fastserve.cli.sections import given, options_of
from fastserve.config import check
from fastserve.generation.orders import EngineOptions
from fastserve.serving import ServeOptions


@click.command()
@click.argument("models", nargs=-1, required=True)
@options_of(ServeOptions, without=("writing",))
@options_of(EngineOptions)
def serve(models: tuple[str, ...], **values: Any) -> None:
    """Answer over HTTP with MODELS (name, name@3, name@alias or a folder), those that label and those that write.

    A model that is named by an alias follows it: promote another version and it is swapped in with no failed request.
    The last options, from --policy on, are for the engine of language models.
    """
    from fastserve import serving

    writing = check(EngineOptions, given(EngineOptions, values), "serve")
    options = check(ServeOptions, {**given(ServeOptions, values), "writing": writing}, "serve")
    code = serving.serve(list(models), options)
    if code:
        raise click.exceptions.Exit(code)
