"""`fastserve predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastserve import files
from fastserve.cli.main import json_option, show
from fastserve.errors import UserError

if TYPE_CHECKING:
    from fastserve.api import Model

Answer = Callable[[list[str]], list[dict[str, Any]]]

BLOCK = 1024


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--data", help="A file of texts instead of TEXT words; '-' reads lines from standard input.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the answers there, one JSON object a line.")
@click.option("--column", help="The column of --data that holds the texts.")
@click.option(
    "-s",
    "--sampling",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of a model that writes: temperature, max_tokens, top_p, seed, stop and so on.",
)
@json_option
def predict(
    model: str,
    texts: tuple[str, ...],
    data: str | None,
    out: Path | None,
    column: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Answer TEXTS with MODEL (name, name@3, name@alias or a folder): labels, or what it writes after each."""
    from fastserve import api

    if bool(texts) == (data is not None):
        raise UserError("expected either texts on the command line or --data FILE")
    loaded = api.load(model)
    source: Iterable[str] = texts
    if data == "-":
        source = (line.rstrip("\n") for line in sys.stdin)
    elif data is not None:
        source = api.read_texts(data, column)
    answers = _answers(source, _answer_with(loaded, settings))
    if out is not None:
        count = _write(out, answers)
        show({"rows": count, "file": str(out)}, f"wrote {count:,} answers to {out}", as_json=as_json)
    elif as_json:
        found = [{"text": text, **answer} for text, answer in answers]
        show({"predictions": found}, "", as_json=True)
    else:
        for text, answer in answers:
            click.echo(_line(text, answer))


def _answer_with(model: Model, settings: tuple[str, ...]) -> Answer:
    """Texts to answers as JSON objects, by a model that labels or one that writes."""
    from fastserve import api

    if not model.writes:
        if settings:
            raise UserError(f"{model.reference} gives labels: --sampling is for models that write")
        return lambda texts: [answer.to_json() for answer in model.predict(texts)]
    sampling = api.sampling(settings)
    if sampling.n > 1:
        raise UserError("predict gives one answer a text: leave n out")
    return lambda texts: [
        {"answer": written.text, "finish_reason": written.finish_reason, "tokens": len(written.ids)}
        for written in model.writer.write(texts, sampling)
    ]


def _answers(texts: Iterable[str], answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == BLOCK:
            yield from zip(block, answer(block), strict=True)
            block = []
    if block:
        yield from zip(block, answer(block), strict=True)


def _line(text: str, answer: dict[str, Any]) -> str:
    if "answer" in answer:
        return str(answer["answer"])
    label = answer["label"]
    shown = ", ".join(label) or "(none)" if isinstance(label, list) else label
    return f"{shown}\t{answer['score']:.4f}\t{text}"


def _write(path: Path, answers: Iterable[tuple[str, dict[str, Any]]]) -> int:
    count = 0
    lines = []
    for text, answer in answers:
        lines.append(json.dumps({"text": text, **answer}, ensure_ascii=False))
        count += 1
    files.write_text(path, "\n".join(lines) + "\n")
    return count
