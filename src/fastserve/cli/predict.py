"""`fastserve predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastserve import files
from fastserve.cli.main import json_option, show
from fastserve.errors import UserError
from fastserve.types import Prediction

if TYPE_CHECKING:
    from fastserve.api import Model

BLOCK = 1024


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--data", help="A file of texts instead of TEXT words; '-' reads lines from standard input.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the answers there, one JSON object a line.")
@click.option("--column", help="The column of --data that holds the texts.")
@json_option
def predict(
    model: str, texts: tuple[str, ...], data: str | None, out: Path | None, column: str | None, as_json: bool
) -> None:
    """Answer TEXTS with MODEL (name, name@3, name@alias or a folder)."""
    from fastserve import api

    if bool(texts) == (data is not None):
        raise UserError("expected either texts on the command line or --data FILE")
    loaded = api.load(model)
    source: Iterable[str] = texts
    if data == "-":
        source = (line.rstrip("\n") for line in sys.stdin)
    elif data is not None:
        source = api.read_texts(data, column)
    answers = _answers(loaded, source)
    if out is not None:
        count = _write(out, answers)
        show({"rows": count, "file": str(out)}, f"wrote {count:,} answers to {out}", as_json=as_json)
    elif as_json:
        found = [{"text": text, **answer.to_json()} for text, answer in answers]
        show({"predictions": found}, "", as_json=True)
    else:
        for text, answer in answers:
            click.echo(_line(text, answer))


def _answers(model: Model, texts: Iterable[str]) -> Iterator[tuple[str, Prediction]]:
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == BLOCK:
            yield from zip(block, model.predict(block), strict=True)
            block = []
    if block:
        yield from zip(block, model.predict(block), strict=True)


def _line(text: str, answer: Prediction) -> str:
    label = ", ".join(answer.label) or "(none)" if isinstance(answer.label, list) else answer.label
    return f"{label}\t{answer.score:.4f}\t{text}"


def _write(path: Path, answers: Iterable[tuple[str, Prediction]]) -> int:
    count = 0
    lines = []
    for text, answer in answers:
        lines.append(json.dumps({"text": text, **answer.to_json()}, ensure_ascii=False))
        count += 1
    files.write_text(path, "\n".join(lines) + "\n")
    return count
