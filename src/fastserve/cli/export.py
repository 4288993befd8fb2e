"""`fastserve export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastserve.cli.kubernetes import export_manifests
from fastserve.cli.main import json_option, show

if TYPE_CHECKING:
    from fastserve.compression.export import Exported


@click.command()
@click.argument("model")
@click.option("--runtime", type=click.Choice(["onnx", "openvino"]), help="What shall run the network.")
@click.option("--int8", is_flag=True, help="8-bit matrices: smaller, often faster; needs --data to be checked on.")
@click.option("--data", help="Labelled texts that the model has not seen, to check the new form with.")
@click.option("--name", help="Publish as the next version of this name instead of MODEL's own.")
@click.option("--out", type=click.Path(path_type=Path), help="Write a folder there instead of publishing.")
@click.option("--max-drop", type=float, default=0.5, show_default=True, help="Points of accuracy that int8 may lose.")
@click.option(
    "--min-agreement", type=float, default=0.97, show_default=True, help="Share of texts to be answered as before."
)
@click.option("--text-column", help="Column of the texts; guessed by default.")
@click.option("--label-column", help="Column of the labels; guessed by default.")
@click.option("--separator", help="What parts several labels in one cell.")
@click.option(
    "--kubernetes", is_flag=True, help="Write manifests to --out that train and serve a CONFIG.yaml, or serve MODEL."
)
@click.option(
    "--set", "words", multiple=True, metavar="KEY=VALUE", help="With --kubernetes: image=NAME, cpu=8, gpus=1..."
)
@json_option
def export(
    model: str,
    name: str | None,
    out: Path | None,
    text_column: str | None,
    label_column: str | None,
    separator: str | None,
    kubernetes: bool,
    words: tuple[str, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a version of MODEL that also holds its network in the form of a faster runtime.

    The new form is compared with torch; `auto` uses it only where it is as good and faster.
    """
    from fastserve import api, compression
    from fastserve.config import check

    if kubernetes:
        export_manifests(model, out, words, name=name, as_json=as_json)
        return
    if settings["runtime"] is None:
        raise click.UsageError("what shall run the network? Add --runtime onnx or openvino; or --kubernetes")
    columns = {"text": text_column, "label": label_column, "separator": separator}
    options = check(compression.ExportOptions, {**settings, "columns": columns}, "export")
    loaded = api.load(model)
    made = compression.export_as(loaded.bundle, options, version=loaded.version, name=name, out=out)
    show(_result(made), _text(made), as_json=as_json)


def _result(made: Exported) -> dict[str, Any]:
    return {
        "model": made.version.reference if made.version else str(made.bundle.folder),
        "folder": str(made.bundle.folder),
        "runtime": made.options.runtime,
        "int8": made.options.int8,
        "passed": made.passed,
        "serves": made.serves,
        "check": made.check.figures(),
        "speed": made.speed,
        "bytes": made.bundle.size_bytes(),
    }


def _text(made: Exported) -> str:
    verdict = "passed" if made.passed else "not passed"
    place = f"model   {made.version.reference}\n" if made.version else ""
    return (
        f"{made.options.form}: {verdict}; {made.check.describe()}\n"
        f"it is {made.speed:.2f} times as fast as the usual runtime, with one thread\n\n"
        f"{place}folder  {made.bundle.folder}\n"
        f"serves  {made.serves} (by --runtime auto)"
    )
