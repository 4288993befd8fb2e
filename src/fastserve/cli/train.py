"""`fastserve train`."""

from __future__ import annotations

from typing import Any

import click

from fastserve.cli.main import json_option, show
from fastserve.errors import ConfigError, UserError


@click.command()
@click.argument("words", nargs=-1, metavar="[CONFIG.yaml] [KEY.PATH=VALUE]...")
@click.option("--data", "data", help="Training file, instead of data.train.")
@click.option("--test", "test", help="File for the final report, instead of data.test.")
@click.option("--task", help="classification, generation or masked")
@click.option("--network", help="auto, bag, mlp, textcnn, lstm, transformer, a local Hugging Face folder, module:Class")
@click.option("--name", help="Publish the model under this name.")
@click.option("--workers", type=int, help="Processes on this machine, instead of distributed.workers.")
@click.option("--nodes", help="Machines, N or LEAST:MOST; run the same command on each of them.")
@click.option("--rendezvous", help="HOST:PORT of one of the machines, where they meet; several, by commas.")
@click.option("--on", help="local, ray, or ray:ADDRESS of a Ray cluster.")
@json_option
def train(
    words: tuple[str, ...],
    data: str | None,
    test: str | None,
    task: str | None,
    network: str | None,
    name: str | None,
    workers: int | None,
    nodes: str | None,
    rendezvous: str | None,
    on: str | None,
    as_json: bool,
) -> None:
    """Train a model from a configuration, or from a data file alone.

    A run that was killed goes on when the same command is run again.
    """
    from fastserve import api, config

    paths = [word for word in words if "=" not in word]
    if len(paths) > 1:
        raise ConfigError(f"expected one configuration file, found {', '.join(paths)}")
    if not paths and data is None and not any(word.startswith("data.train=") for word in words):
        raise UserError("what to train on? Name a configuration file, or --data FILE --task classification")
    values: dict[str, Any] = {
        "data": _given(train=data, test=test),
        "model": _given(network=network),
        "distributed": _given(workers=workers, nodes=nodes, rendezvous=rendezvous, run_on=on),
    }
    settings = config.load_config(
        paths[0] if paths else None,
        [word for word in words if "=" in word],
        {key: value for key, value in {**values, **_given(task=task, name=name)}.items() if value},
    )
    model = api.train(settings)
    show(model.summary(), model.describe(), as_json=as_json)


def _given(**values: str | int | None) -> dict[str, str | int]:
    return {key: value for key, value in values.items() if value is not None}
