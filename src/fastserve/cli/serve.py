"""`fastserve serve`."""

from __future__ import annotations

from typing import Any

import click

from fastserve.cli.sections import given, options_of
from fastserve.config import check
from fastserve.serving import ServeOptions


@click.command()
@click.argument("models", nargs=-1, required=True)
@options_of(ServeOptions)
def serve(models: tuple[str, ...], **values: Any) -> None:
    """Answer over HTTP with MODELS (name, name@3, name@alias or a folder).

    A model that is named by an alias follows it: promote another version and it is swapped in with no failed request.
    """
    from fastserve import serving

    options = check(ServeOptions, given(ServeOptions, values), "serve")
    code = serving.serve(list(models), options)
    if code:
        raise click.exceptions.Exit(code)
