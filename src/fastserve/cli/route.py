"""`fastserve route`."""

from __future__ import annotations

from typing import Any

import click

from fastserve.cli.sections import given, options_of
from fastserve.config import check
from fastserve.serving.options import HttpOptions


@click.command()
@click.argument("servers", nargs=-1, required=True)
@options_of(HttpOptions)
def route(servers: tuple[str, ...], **values: Any) -> None:
    """One address before several SERVERS (http://HOST:PORT), on this machine or others, that serve the same models.

    A prompt goes where its beginning was read before, unless that server has much more to do than another. A server
    that is lost is passed over, and taken back when it is ready again.
    """
    from fastserve.serving.routing.route import route

    code = route(servers, check(HttpOptions, given(HttpOptions, values), "route"))
    if code:
        raise click.exceptions.Exit(code)
