"""Judge a model on a file of labelled texts: read, answer, measure, write the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve import files
from fastserve.bundle.predictor import Predictor
from fastserve.config import DataConfig
from fastserve.data.dataset import open_dataset
from fastserve.errors import DataError
from fastserve.evaluation.classification import evaluate_classification
from fastserve.evaluation.comparison import Comparison, compare
from fastserve.evaluation.html import comparison_html, report_html
from fastserve.log import Progress, say
from fastserve.types import FloatArray, LongArray, Report

MOST_SLICES = 30
"""A column with more values than this says who a row is, not what kind it is."""


@dataclass(slots=True)
class Answered:
    """Rows with known labels and what each model said. probabilities: one (N, C) array a model."""

    targets: npt.NDArray[Any]
    probabilities: list[FloatArray]
    texts: list[str]
    rows: LongArray
    columns: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A report and the answers that it was made from."""

    report: Report
    answered: Answered


def evaluate_file(predictor: Predictor, address: str, config: DataConfig, *, out: Path | None = None) -> Evaluation:
    """The report of one model on the rows of `address`; into `out` as report.json and report.html."""
    answered = answer([predictor], address, config)
    labels = predictor.bundle.manifest.labels
    report = evaluate_classification(
        answered.targets,
        answered.probabilities[0],
        labels,
        texts=answered.texts,
        rows=answered.rows,
        slices=slice_columns(answered.columns),
    )
    if out is not None:
        files.write_json(out / "report.json", report.to_json())
        files.write_text(out / "report.html", report_html(report, lineage={"data": address}))
    return Evaluation(report, answered)


def compare_on_file(
    pair: tuple[Predictor, Predictor],
    names: tuple[str, str],
    address: str,
    config: DataConfig,
    *,
    out: Path | None = None,
) -> Comparison:
    """The second of `pair` against the first, on the same rows."""
    first, second = (predictor.bundle.manifest.labels for predictor in pair)
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))
        raise DataError(f"{names[0]} and {names[1]} differ in labels ({', '.join(odd[:5])}): they cannot be compared")
    answered = answer(pair, address, config)
    order = [second.index(label) for label in first]
    comparison = compare(
        answered.targets,
        answered.probabilities[0],
        answered.probabilities[1][:, order],
        first,
        names=names,
        texts=answered.texts,
        rows=answered.rows,
    )
    if out is not None:
        files.write_json(out / "comparison.json", comparison.to_json())
        files.write_text(out / "report.html", comparison_html(comparison))
    return comparison


def answer(predictors: Sequence[Predictor], address: str, config: DataConfig) -> Answered:
    """Read `address` and let every model answer its rows; targets are in the label order of the first."""
    manifest = predictors[0].bundle.manifest
    dataset = open_dataset(address, config, keep=None, known_labels=manifest.labels)
    if dataset.multi_label and not manifest.multi_label:
        raise DataError(f"{address} has several labels a row, but the model gives one: name another label column")
    targets: list[npt.NDArray[Any]] = []
    probabilities: list[list[FloatArray]] = [[] for _ in predictors]
    found = Answered(np.zeros(0), [], [], np.zeros(0, np.int64))
    rows: list[LongArray] = []
    with Progress("evaluating", total=None, unit="texts") as progress:
        for block in dataset.blocks():
            for scores, predictor in zip(probabilities, predictors, strict=True):
                scores.append(predictor.scores(block.texts))
            targets.append(predictors[0].task.targets(block.labels))
            rows.append(block.rows)
            found.texts.extend(block.texts)
            for name, cells in block.columns.items():
                found.columns.setdefault(name, []).extend(cells)
            progress.advance(len(block))
    if dataset.bad_rows.total:
        say(f"{address}: {dataset.bad_rows.total:,} rows were skipped: {dataset.bad_rows.describe()}")
    found.targets, found.rows = np.concatenate(targets), np.concatenate(rows)
    found.probabilities = [np.concatenate(scores) for scores in probabilities]
    return found


def slice_columns(columns: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The columns that divide the rows into a few kinds."""
    return {name: cells for name, cells in columns.items() if 1 < len(set(cells)) <= MOST_SLICES}
