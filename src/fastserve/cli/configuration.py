"""`fastserve new` and `fastserve schema`: a configuration to start from, and what one may hold."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fastserve import config, files, plugins
from fastserve.cli.main import json_option, show
from fastserve.errors import ConfigError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", default="classification", show_default=True)
@click.option("--data", default="data.tsv", help="The training file to write into it.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@json_option
def new(file: Path, task: str, data: str, force: bool, as_json: bool) -> None:
    """Write a commented configuration to FILE."""
    from fastserve.cli.template import commented

    plugins.TASKS.load(task)
    if file.exists() and not force:
        raise ConfigError(f"{file} exists already; choose another name or add --force")
    files.write_text(file, commented(task, data))
    show({"file": str(file)}, f"wrote {file}; edit it, then: fastserve train {file}", as_json=as_json)


@click.command()
@click.option("--network", help="The options of this network instead of the whole configuration.")
def schema(network: str | None) -> None:
    """Print the JSON Schema of the configuration."""
    if network is None:
        model: type[config.Section] = config.Config
    else:
        from fastserve.models import find

        model = find(network, causal=None).Options
    click.echo(json.dumps(model.model_json_schema(), ensure_ascii=False, indent=2))
