"""Judge language models on a file: read, measure what they need for the texts, write the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastserve import files
from fastserve.bundle.writer import Writer
from fastserve.config import DataConfig
from fastserve.data.corpus import open_corpus
from fastserve.evaluation.html import comparison_html, report_html
from fastserve.evaluation.language import evaluate_language
from fastserve.evaluation.language_comparison import LanguageComparison, compare_language
from fastserve.evaluation.needed import Needed, needed
from fastserve.log import Progress, say
from fastserve.text.rows import RowMaker
from fastserve.types import FloatArray, LongArray, Report


@dataclass(slots=True)
class Scored:
    """What a model needed for the rows of a corpus: blocks of the arguments of `evaluate_language`."""

    sums: list[FloatArray] = field(default_factory=list)
    sizes: list[LongArray] = field(default_factory=list)
    rows: list[LongArray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def needed(self) -> Needed:
        """For a comparison. DataError where there is nothing to judge."""
        return needed(
            np.concatenate(self.sums), np.concatenate(self.sizes), rows=np.concatenate(self.rows), texts=self.texts
        )


def evaluate_corpus(writer: Writer, address: str, config: DataConfig, *, out: Path | None = None) -> Report:
    """The report of a model on the documents of `address`; into `out` as report.json and report.html."""
    found = score_corpus(writer, address, config)
    report = evaluate_language(
        np.concatenate(found.sums),
        np.concatenate(found.sizes),
        texts=found.texts,
        rows=np.concatenate(found.rows),
    )
    if out is not None:
        files.write_json(out / "report.json", report.to_json())
        files.write_text(out / "report.html", report_html(report, lineage={"data": address}))
    return report


def compare_on_corpus(
    pair: tuple[Writer, Writer],
    names: tuple[str, str],
    address: str,
    config: DataConfig,
    *,
    out: Path | None = None,
) -> LanguageComparison:
    """The second of `pair` against the first, on the same documents; their tokenizers may differ."""
    first, second = (score_corpus(writer, address, config).needed() for writer in pair)
    comparison = compare_language(first, second, names=names)
    if out is not None:
        files.write_json(out / "comparison.json", comparison.to_json())
        files.write_text(out / "report.html", comparison_html(comparison))
    return comparison


def score_corpus(writer: Writer, address: str, config: DataConfig) -> Scored:
    """Read `address` and let a model say how probable its documents are."""
    corpus = open_corpus(address, config)
    maker = RowMaker(writer.pipeline, writer.network.longest)
    found = Scored()
    with Progress("evaluating", total=None, unit="tokens") as progress:
        for block in corpus.blocks():
            encoded = maker.encode(block.documents, block.rows)
            found.sums.append(writer.likelihoods(encoded.tokens))
            found.sizes.append(encoded.targets[:, :2])
            found.rows.append(encoded.rows)
            found.texts += [
                writer.pipeline.tokenizer.decode(encoded.tokens.between(place, place + 1).values)
                for place in range(len(encoded.tokens))
            ]
            progress.advance(len(encoded.tokens.values))
    for sentence in maker.faults.sentences(maker.context):
        say(f"{address}: {sentence}")
    if corpus.bad_rows.total:
        say(f"{address}: {corpus.bad_rows.total:,} rows were skipped: {corpus.bad_rows.describe()}")
    return found
