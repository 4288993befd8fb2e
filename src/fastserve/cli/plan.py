"""`fastserve plan`: what a training step would cost on many workers."""

from __future__ import annotations

from typing import Any

import click

from fastserve.cli.main import json_option, show
from fastserve.errors import ConfigError


@click.command()
@click.argument("words", nargs=-1, metavar="CONFIG.yaml [KEY.PATH=VALUE]...")
@click.option("--workers", default="2,4,8,64,512,4096", show_default=True, help="Numbers of workers, by commas.")
@click.option("--per-node", type=int, help="Workers on a machine; this machine's cores by default.")
@click.option("--cores", type=int, help="Cores that the workers of a machine share; this machine's by default.")
@click.option("--link", default=None, help="Between machines, as in 100Gbit; by default as between processes here.")
@click.option("--latency", default="50us", show_default=True, help="Of that link, one way.")
@click.option(
    "--speed", type=float, default=1.0, show_default=True, help="A worker's, beside one core of this machine."
)
@click.option("--memory", help="Of a worker, as in 80GB; by default every strategy is taken to fit.")
@click.option("--data", "data", help="Training file, instead of data.train.")
@json_option
def plan(words: tuple[str, ...], data: str | None, as_json: bool, **options: Any) -> None:
    """Predict memory, step time and communication for numbers of workers, and name a strategy.

    The data is prepared and a few steps are measured on one core of this machine; the rest is arithmetic.
    """
    from fastserve import api, config

    paths = [word for word in words if "=" not in word]
    if len(paths) > 1:
        raise ConfigError(f"expected one configuration file, found {', '.join(paths)}")
    settings = config.load_config(
        paths[0] if paths else None,
        [word for word in words if "=" in word],
        {"data": {"train": data}} if data else {},
    )
    found = api.plan(settings, numbers=_numbers(options.pop("workers")), **options)
    show(found.to_json(), found.text(), as_json=as_json)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--workers '{text}': expected numbers from 1 on, by commas, as in 2,4,512")
    return [int(part) for part in parts]
