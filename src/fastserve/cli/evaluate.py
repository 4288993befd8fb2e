"""`fastserve evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from fastserve.cli.main import json_option, show
from fastserve.cli.sections import parallel_option
from fastserve.config import Columns


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="Labelled texts that the model has not seen.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json and report.html.")
@click.option("--against", metavar="MODEL", help="Compare with this model on the same rows, with a significance test.")
@click.option("--text-column", help="Column of the texts; guessed by default.")
@click.option("--label-column", help="Column of the labels; guessed by default.")
@click.option("--separator", help="What parts several labels in one cell.")
@click.option("--questions", metavar="FILE", help="Multiple-choice and cloze rows for a model that writes.")
@click.option(
    "--form", help="An exact form that its texts must have, 五言绝句 say; 'prompt' where the prompts of --data name it."
)
@parallel_option
@json_option
def evaluate(
    model: str,
    data: str,
    out: Path | None,
    against: str | None,
    text_column: str | None,
    label_column: str | None,
    separator: str | None,
    questions: str | None,
    form: str | None,
    tensor_parallel: int,
    as_json: bool,
) -> None:
    """Judge MODEL on a file of labelled texts, or compare it with another."""
    from fastserve import api
    from fastserve.evaluation.text import comparison_text, report_text

    columns = Columns(text=text_column, label=label_column, separator=separator)
    loaded = api.load(model, tensor_parallel=tensor_parallel)
    if against is None:
        report = loaded.evaluate(data, out=out, questions=questions, form=form, columns=columns)
        result, text = report.to_json(), report_text(report)
    else:
        comparison = loaded.compare(api.load(against), data, out=out, columns=columns)
        result, text = comparison.to_json(), comparison_text(comparison)
    where = f"\nreport  {out / 'report.html'}" if out else ""
    show(result, text + where, as_json=as_json)
