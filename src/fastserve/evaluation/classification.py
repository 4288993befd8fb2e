"""Judge a classifier: its answers for rows whose labels are known, to a Report with intervals and reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.evaluation import findings
from fastserve.evaluation.bootstrap import percentile_metric, percentile_metrics, resample_counts, share_metric
from fastserve.evaluation.inputs import Judged, judge
from fastserve.evaluation.outcomes import Outcomes, Rates
from fastserve.evaluation.probabilities import probability_metrics
from fastserve.types import LongArray, Report

_FEW_ROWS = 30
_SLICE_SHARE = 4


def evaluate_classification(
    targets: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    rows: Sequence[int] | LongArray | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
    threshold: float = 0.5,
    mistakes: int = 30,
    seed: int = 0,
    resamples: int = 1000,
) -> Report:
    """Every figure of a classifier with its 95 % bootstrap interval, and what stands behind it.

    targets: int64 (N,) label indices, or (N, C) of 0 and 1 where a row may have several labels (then a label counts as
    predicted from `threshold` on); probabilities: float32 (N, C); texts, rows (numbers in the user's file) and the
    columns of `slices`: N each. The same seed gives the same report. DataError, WorkError: see `inputs.judge`.
    """
    judged = judge(targets, probabilities, labels, texts=texts, rows=rows, threshold=threshold)
    rng = np.random.default_rng(seed)
    outcomes = Outcomes.of(judged)
    here, drawn = outcomes.rates(), outcomes.rates(resample_counts(outcomes.counts, resamples, rng))
    resampled = drawn.averages()
    metrics = {name: percentile_metric(value[0], resampled[name]) for name, value in here.averages().items()}
    if metrics["accuracy"].value in (0.0, 1.0):  # every resample is alike, which says nothing about other rows
        metrics["accuracy"] = share_metric(int(judged.correct.sum()), len(judged))
    metrics |= probability_metrics(judged, resamples, rng)
    details = {
        "labels": list(judged.labels),
        "multi_label": judged.multi_label,
        "notes": list(_notes(judged, here, "roc_auc" in metrics)),
        "baseline": _baseline(judged),
        "classes": _classes(judged, here, drawn),
        "confusion": findings.confusion(judged),
        "reliability": findings.reliability(judged),
        "score_histogram": findings.score_histogram(judged),
        "threshold_curve": findings.threshold_curve(judged),
        "mistakes": findings.mistakes(judged, mistakes),
        "slices": findings.slices(judged, slices or {}, max(resamples // _SLICE_SHARE, 100), rng),
    }
    return Report("classification", len(judged), metrics, details)


def _classes(judged: Judged, here: Rates, drawn: Rates) -> list[dict[str, Any]]:
    """One entry a label: rows that have it, rows predicted as it, and its figures."""
    columns = {
        name: percentile_metrics(getattr(here, name)[:, 0], getattr(drawn, name))
        for name in ("precision", "recall", "f1")
    }
    return [
        {
            "label": label,
            "support": int(here.support[index, 0]),
            "predicted": int(here.predicted[index, 0]),
            **{name: findings.metric_json(metrics[index]) for name, metrics in columns.items()},
        }
        for index, label in enumerate(judged.labels)
    ]


def _baseline(judged: Judged) -> dict[str, Any]:
    """What always giving the most frequent answer would reach: the least that a model must beat."""
    answers, counts = np.unique(judged.targets, axis=0, return_counts=True)
    best = int(counts.argmax())
    return {"label": judged.names(answers, best), "accuracy": int(counts[best]) / len(judged)}


def _notes(judged: Judged, here: Rates, has_area: bool) -> Iterator[str]:
    """What a reader must know before trusting the figures, one sentence each."""
    if len(judged) < _FEW_ROWS:
        yield f"There are only {len(judged)} rows: the intervals say little. Evaluate on a few hundred at least."
    if (judged.targets == judged.targets[0]).all():
        yield "All rows have the same answer: whether the model tells labels apart cannot be seen here."
    absent = [label for label, rows in zip(judged.labels, here.support[:, 0], strict=True) if rows == 0]
    if absent:
        shown = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        yield f"No row of this data has the label {shown}: nothing is known about how well the model finds it."
    if not has_area:
        yield "The area under the ROC curve is left out: it needs rows with a label and rows without it."
    elif absent and not judged.multi_label:
        yield "The area under the ROC curve is the mean over the labels that occur in this data."
