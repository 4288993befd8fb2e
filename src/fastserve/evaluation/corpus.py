"""Judge language models on a file: read, measure what they need for the texts, write the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastserve import files
from fastserve.bundle.writer import Writer
from fastserve.config import DataConfig
from fastserve.data.corpus import open_corpus
from fastserve.data.corpus_split import beginning
from fastserve.errors import DataError, choices
from fastserve.evaluation.checks import Check
from fastserve.evaluation.forms import FORMS, check_forms, check_named_forms, find_form
from fastserve.evaluation.harness import judge_items, read_items, scorer, win_rates
from fastserve.evaluation.html import comparison_html, report_html
from fastserve.evaluation.language import Sample, evaluate_language
from fastserve.evaluation.language_comparison import LanguageComparison, compare_language
from fastserve.evaluation.needed import Needed, needed
from fastserve.generation.sampling import Sampling
from fastserve.log import Progress, say
from fastserve.text.rows import RowMaker
from fastserve.types import FloatArray, LongArray, Report

SAMPLES, SHOWN_SAMPLES = 100, 8
SAMPLE_TOKENS, SAMPLE_CHARACTERS = 128, 20


@dataclass(slots=True)
class Scored:
    """What a model needed for the rows of a corpus: blocks of the arguments of `evaluate_language`."""

    sums: list[FloatArray] = field(default_factory=list)
    sizes: list[LongArray] = field(default_factory=list)
    rows: list[LongArray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rejected: list[FloatArray] = field(default_factory=list)
    """Of pairs of answers: nats and tokens of the worse ones."""
    prompts: list[str] = field(default_factory=list)
    """What the first documents ask, or begin with."""

    def wins(self) -> list[Check]:
        """How often the better of two answers is the more probable one, where rows are pairs."""
        if not self.rejected:
            return []
        both = np.stack([np.concatenate(self.sums), np.concatenate(self.rejected)], 1)  # (N, 2 answers, 2)
        rows = np.concatenate(self.rows).tolist()
        return win_rates(-both[:, :, 0].astype(np.float64), both[:, :, 1], self.texts, rows)

    def needed(self) -> Needed:
        """For a comparison. DataError where there is nothing to judge."""
        return needed(
            np.concatenate(self.sums), np.concatenate(self.sizes), rows=np.concatenate(self.rows), texts=self.texts
        )


def evaluate_corpus(
    writer: Writer,
    address: str,
    config: DataConfig,
    *,
    out: Path | None = None,
    questions: str | None = None,
    form: str | None = None,
) -> Report:
    """The report of a model on the documents of `address`; into `out` as report.json and report.html.

    questions: a file of multiple-choice and cloze rows (`harness.read_items`). form: an exact form that what the model
    writes after prompts of the data must have, or "prompt" where each prompt names it (`forms.FORMS`).
    """
    found = score_corpus(writer, address, config)
    written = write_samples(writer, found.prompts)
    checks = [*found.wins(), *check_written(written, form)]
    if questions is not None:
        checks += judge_items(read_items(questions), scorer(writer))
    report = evaluate_language(
        np.concatenate(found.sums),
        np.concatenate(found.sizes),
        texts=found.texts,
        rows=np.concatenate(found.rows),
        samples=written[:SHOWN_SAMPLES],
        checks=checks,
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
            if encoded.rejected is not None:
                found.rejected.append(writer.likelihoods(encoded.rejected))
            left = max(SAMPLES - len(found.prompts), 0)
            found.prompts += [beginning(document, SAMPLE_CHARACTERS) for document in block.documents[:left]]
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


def write_samples(writer: Writer, prompts: Sequence[str]) -> list[Sample]:
    """What the model writes after each prompt; those that fill its context are passed over."""
    most = writer.network.longest // 2
    fitting = [prompt for prompt in prompts if prompt and len(writer.pipeline.ask(prompt)) < most]
    if not fitting:
        return []
    sampling = Sampling(max_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=0)
    written = writer.write(fitting, sampling)
    return [Sample(prompt, one.text, one.finish_reason) for prompt, one in zip(fitting, written, strict=True)]


def check_written(written: Sequence[Sample], form: str | None) -> list[Check]:
    """Whether what was written has the form: one for all, or with "prompt" the one that each prompt names."""
    if form is None:
        return []
    if form != "prompt":
        return [check_forms([sample.text for sample in written], find_form(form), name=form)]
    named = [sample for sample in written if sample.prompt.strip() in FORMS]
    if not named:
        raise DataError(f"no prompt of the data names a form: {choices('', FORMS)}")
    return check_named_forms([sample.text for sample in named], [sample.prompt.strip() for sample in named])
