"""`fastserve data check`: what is wrong with a file before a model learns it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastserve import files
from fastserve.cli.main import json_option, show
from fastserve.config import Columns, DataConfig
from fastserve.log import say

if TYPE_CHECKING:
    from fastserve.data.dataset import Dataset
    from fastserve.data.documents import DocumentTexts


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """Look at data files."""


@data.command()
@click.argument("file")
@click.option("--against", metavar="FILE", help="Held-out data: texts that stand in both are reported.")
@click.option("--text-column", help="Column of the texts; guessed by default.")
@click.option("--label-column", help="Column of the labels; guessed by default.")
@click.option("--separator", help="What parts several labels in one cell.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the whole report there as JSON.")
@json_option
def check(
    file: str,
    against: str | None,
    text_column: str | None,
    label_column: str | None,
    separator: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Report on FILE with row numbers: bad rows, duplicates, contradictions, leakage, balance, lengths, damage."""
    from fastserve.data.quality import check as check_quality

    config = DataConfig(columns=Columns(text=text_column, label=label_column, separator=separator))
    other = _texts(against, config) if against is not None else None
    report = check_quality(_texts(file, config), other, _language)
    if out is not None:
        files.write_json(out, report.to_json())
    show(report.to_json(), str(report), as_json=as_json)


def _texts(address: str, config: DataConfig) -> Dataset | DocumentTexts:
    """Labelled or bare texts, or what a language model learns from."""
    from fastserve.data.dataset import open_dataset
    from fastserve.data.documents import document_texts

    found = document_texts(address, config)
    if found is None:
        return open_dataset(address, config, labelled=None)
    say(f"{address}: {found.corpus.description}")
    return found


def _language(texts: Sequence[str]) -> str:
    from fastserve.text.language import detect

    return detect(texts).name
