"""What stands behind the figures: confusion, curves, mistakes, slices. Everything is plain JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastserve.errors import DataError
from fastserve.evaluation.bootstrap import percentile_metric, resample_counts, share_metric
from fastserve.evaluation.inputs import Judged
from fastserve.evaluation.outcomes import Outcomes
from fastserve.evaluation.probabilities import NUM_BINS, bins_of, confidences
from fastserve.types import LongArray, Metric

Json = dict[str, Any]
MOST_MATRIX_LABELS = 60
MOST_PAIRS = 20
MOST_SLICES = 30
MOST_CURVE_POINTS = 200
_TEXT_LENGTH = 600


def metric_json(metric: Metric) -> Json:
    return {"value": metric.value, "low": metric.low, "high": metric.high}


def confusion(judged: Judged) -> Json | None:
    """Rows are actual, columns predicted labels; above 60 labels only the largest confusions. None for multi-label."""
    if judged.multi_label:
        return None
    size = len(judged.labels)
    cells, counts = np.unique(judged.targets * size + judged.predicted, return_counts=True)
    matrix = None
    if size <= MOST_MATRIX_LABELS:
        full = np.zeros(size * size, np.int64)
        full[cells] = counts
        matrix = full.reshape(size, size).tolist()
    wrong = cells // size != cells % size
    order = np.argsort(-counts[wrong], kind="stable")[:MOST_PAIRS]
    pairs = [
        {"actual": judged.labels[cell // size], "predicted": judged.labels[cell % size], "rows": int(count)}
        for cell, count in zip(cells[wrong][order], counts[wrong][order], strict=True)
    ]
    return {"matrix": matrix, "largest": pairs}


def reliability(judged: Judged) -> list[Json]:
    """For each bin of claimed probability: how many claims, their mean, and the share that came true."""
    claimed, came_true = confidences(judged)
    bins = bins_of(claimed).ravel()
    counts = np.bincount(bins, minlength=NUM_BINS)
    claims = np.bincount(bins, claimed.ravel(), minlength=NUM_BINS)
    truths = np.bincount(bins, came_true.ravel(), minlength=NUM_BINS)
    return [
        {
            "from": index / NUM_BINS,
            "to": (index + 1) / NUM_BINS,
            "rows": int(counts[index]),
            "claimed": float(claims[index] / counts[index]),
            "came_true": metric_json(share_metric(int(truths[index]), int(counts[index]))),
        }
        for index in np.flatnonzero(counts)
    ]


def score_histogram(judged: Judged, num_bins: int = 20) -> Json:
    """How many rows the model answered with each probability of its own answer, right and wrong apart."""
    score = judged.probabilities.max(1)
    bins = bins_of(score, num_bins)
    right = np.bincount(bins[judged.correct], minlength=num_bins)
    wrong = np.bincount(bins[~judged.correct], minlength=num_bins)
    return {"bins": num_bins, "right": right.tolist(), "wrong": wrong.tolist()}


def threshold_curve(judged: Judged) -> list[Json] | None:
    """Two labels: what each threshold on the second label's probability would give. None for other tasks."""
    if not judged.binary or not 0 < judged.targets.sum() < len(judged):
        return None
    scores = judged.probabilities[:, 1]
    order = np.argsort(-scores, kind="stable")
    hits, alarms = np.cumsum(judged.targets[order]), np.cumsum(1 - judged.targets[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last row of each distinct score
    if len(ends) > MOST_CURVE_POINTS:
        ends = ends[np.linspace(0, len(ends) - 1, MOST_CURVE_POINTS).astype(int)]
    positives, negatives = int(hits[-1]), int(alarms[-1])
    return [
        {
            "threshold": float(scores[order[end]]),
            "true_positive_rate": int(hits[end]) / positives,
            "false_positive_rate": int(alarms[end]) / negatives,
            "precision": int(hits[end]) / int(end + 1),
            "f1": 2 * int(hits[end]) / (int(end + 1) + positives),
        }
        for end in ends
    ]


def mistakes(judged: Judged, most: int) -> list[Json]:
    """The wrong rows that the model was surest of; many of them turn out to be wrong labels in the data."""
    error = np.abs(judged.probabilities - judged.actual).max(1)
    sureness = error if judged.multi_label else judged.probabilities.max(1)
    wrong = np.flatnonzero(~judged.correct)
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")[:most]]
    return [_mistake(judged, int(index), float(sureness[index])) for index in worst]


def _mistake(judged: Judged, index: int, sureness: float) -> Json:
    scores = judged.probabilities[index]
    top = np.argsort(-scores, kind="stable")[:5]
    found: Json = {
        "row": int(judged.rows[index]),
        "actual": judged.names(judged.targets, index),
        "predicted": judged.names(judged.predicted, index),
        "score": sureness,
        "scores": {judged.labels[label]: float(scores[label]) for label in top},
    }
    if not judged.multi_label:
        found["actual_score"] = float(scores[judged.targets[index]])
    if judged.texts is not None:
        found["text"] = shorten(judged.texts[index])
    return found


def shorten(text: str) -> str:
    return text if len(text) <= _TEXT_LENGTH else text[:_TEXT_LENGTH] + "…"


def slices(
    judged: Judged, columns: Mapping[str, Sequence[str]], resamples: int, rng: np.random.Generator
) -> dict[str, Json]:
    """For each column: accuracy and macro F1 of its largest values, with intervals."""
    found: dict[str, Json] = {}
    for column, values in columns.items():
        if len(values) != len(judged):
            raise DataError(
                f"slice column '{column}' has {len(values)} values, expected {len(judged)}: one for each row"
            )
        codes: dict[str, int] = {}
        groups = np.array([codes.setdefault(str(value), len(codes)) for value in values])
        names, sizes = list(codes), np.bincount(groups)
        largest = np.argsort(-sizes, kind="stable")[:MOST_SLICES]
        members = dict(_members(groups, largest))
        rows = [{"value": names[g], **_slice(judged, members[int(g)], resamples, rng)} for g in largest]
        found[column] = {"values": len(names), "shown": rows}
    return found


def _members(groups: LongArray, wanted: LongArray) -> Iterator[tuple[int, LongArray]]:
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], wanted, "left")
    ends = np.searchsorted(groups[order], wanted, "right")
    for group, start, end in zip(wanted, starts, ends, strict=True):
        yield int(group), order[start:end]


def _slice(judged: Judged, rows: LongArray, resamples: int, rng: np.random.Generator) -> Json:
    outcomes = Outcomes.of(judged, rows)
    drawn = outcomes.rates(resample_counts(outcomes.counts, resamples, rng))
    here = outcomes.rates()
    f1 = percentile_metric(here.macro(here.f1)[0], drawn.macro(drawn.f1))
    accuracy = share_metric(int(judged.correct[rows].sum()), len(rows))
    return {"rows": len(rows), "accuracy": metric_json(accuracy), "f1_macro": metric_json(f1)}
