"""Judge a language model on a file: read, measure what it needs for the texts, write the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastserve import files
from fastserve.bundle.writer import Writer
from fastserve.config import DataConfig
from fastserve.data.corpus import open_corpus
from fastserve.evaluation.html import report_html
from fastserve.evaluation.language import evaluate_language
from fastserve.log import Progress, say
from fastserve.text.rows import RowMaker
from fastserve.types import Report


def evaluate_corpus(writer: Writer, address: str, config: DataConfig, *, out: Path | None = None) -> Report:
    """The report of a model on the documents of `address`; into `out` as report.json and report.html."""
    corpus = open_corpus(address, config)
    maker = RowMaker(writer.pipeline, writer.network.longest)
    sums, sizes, rows, texts = [], [], [], []
    with Progress("evaluating", total=None, unit="tokens") as progress:
        for block in corpus.blocks():
            encoded = maker.encode(block.documents, block.rows)
            sums.append(writer.likelihoods(encoded.tokens))
            sizes.append(encoded.targets[:, :2])
            rows.append(encoded.rows)
            texts += [
                writer.pipeline.tokenizer.decode(encoded.tokens.between(place, place + 1).values)
                for place in range(len(encoded.tokens))
            ]
            progress.advance(len(encoded.tokens.values))
    for sentence in maker.faults.sentences(maker.context):
        say(f"{address}: {sentence}")
    if corpus.bad_rows.total:
        say(f"{address}: {corpus.bad_rows.total:,} rows were skipped: {corpus.bad_rows.describe()}")
    report = evaluate_language(np.concatenate(sums), np.concatenate(sizes), texts=texts, rows=np.concatenate(rows))
    if out is not None:
        files.write_json(out / "report.json", report.to_json())
        files.write_text(out / "report.html", report_html(report, lineage={"data": address}))
    return report
