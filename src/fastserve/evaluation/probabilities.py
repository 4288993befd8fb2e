"""How good the probabilities are: log loss, Brier score, calibration error, area under the ROC curve.

Each is a mean of one figure per row (or a simple function of such means), as `bootstrap.resample_means` needs.
"""

from __future__ import annotations

import numpy as np

from fastserve.evaluation.bootstrap import DoubleArray, centered_metric, percentile_metric, resample_means
from fastserve.evaluation.inputs import BoolArray, Judged
from fastserve.types import FloatArray, LongArray, Metric

NUM_BINS = 15
_SMALLEST = float(np.finfo(np.float32).eps)  # as scikit-learn clips float32 probabilities


def probability_metrics(judged: Judged, resamples: int, rng: np.random.Generator) -> dict[str, Metric]:
    """log_loss, calibration_error, brier and, where it is defined, roc_auc, with their intervals."""
    gaps = calibration_gaps(judged)
    area = roc_auc(judged)
    columns = [log_losses(judged)[:, None], brier_scores(judged)[:, None], gaps]
    if area is not None:
        columns.append(area[1][:, None])
    figures = np.hstack(columns)
    means, drawn = figures.mean(0), resample_means(figures, resamples, rng)
    bins = slice(2, 2 + NUM_BINS)
    metrics = {
        "log_loss": percentile_metric(means[0], drawn[0], highest=np.inf),
        "calibration_error": centered_metric(np.abs(means[bins]).sum(), np.abs(drawn[bins]).sum(0)),
        "brier": percentile_metric(means[1], drawn[1], highest=2.0),
    }
    return metrics if area is None else {"roc_auc": percentile_metric(area[0], area[0] + drawn[-1]), **metrics}


def log_losses(judged: Judged) -> DoubleArray:
    """Minus the log of the probability given to the truth: (N,); the mean over labels where a row may have several."""
    probabilities = judged.probabilities.astype(np.float64)
    if judged.multi_label:
        given = np.where(judged.actual, probabilities, 1 - probabilities)
        return np.asarray(-np.log(given.clip(_SMALLEST, 1)).mean(1))
    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    return np.asarray(-np.log(probabilities[np.arange(len(judged)), judged.targets].clip(_SMALLEST, 1)))


def brier_scores(judged: Judged) -> DoubleArray:
    """Squared distance between probabilities and truth: (N,).

    Two labels: of the second label alone (0 to 1). More: summed over labels (0 to 2). Several a row: mean over labels.
    """
    squares = (judged.probabilities.astype(np.float64) - judged.actual) ** 2
    if judged.binary:
        return np.asarray(squares[:, 1])
    return np.asarray(squares.mean(1) if judged.multi_label else squares.sum(1))


def confidences(judged: Judged) -> tuple[FloatArray, BoolArray]:
    """What calibration is judged on: probabilities claimed (M, K), and whether the claims came true (M, K).

    One label a row: the probability of the predicted label (K = 1). Several: of every label (K = C).
    """
    if judged.multi_label:
        return judged.probabilities, judged.actual
    return judged.probabilities.max(1, keepdims=True), judged.correct[:, None]


def bins_of(confidence: FloatArray, num_bins: int = NUM_BINS) -> LongArray:
    """The bin of equal width, 0 to num_bins - 1, of each probability."""
    return np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1).clip(0)


def calibration_gaps(judged: Judged) -> DoubleArray:
    """(N, bins): each row's claimed probability minus what came true, in the bin of its claim.

    Expected calibration error is the sum over bins of the absolute mean of a column (Naeini and others, 2015).
    """
    claimed, came_true = confidences(judged)
    rows, claims = claimed.shape
    flat = np.arange(rows)[:, None] * NUM_BINS + bins_of(claimed)
    weights = (claimed.astype(np.float64) - came_true) / claims
    sums = np.bincount(flat.ravel(), weights.ravel(), minlength=rows * NUM_BINS)
    return np.asarray(sums.reshape(rows, NUM_BINS), np.float64)


def roc_auc(judged: Judged) -> tuple[float, DoubleArray] | None:
    """Area under the ROC curve and each row's influence on it (N,), mean 0; None where no label is both there and not.

    Two labels: of the second. More: the plain mean of one-against-the-rest over the labels for which it is defined.
    """
    columns = [1] if judged.binary else range(len(judged.labels))
    areas, influence = [], np.zeros(len(judged))
    for column in columns:
        positive = judged.actual[:, column]
        if positive.any() and not positive.all():
            area, influences = _area(judged.probabilities[:, column], positive)
            areas.append(area)
            influence += influences
    return (float(np.mean(areas)), influence / len(areas)) if areas else None


def _area(scores: FloatArray, positive: BoolArray) -> tuple[float, DoubleArray]:
    """The area and the rows' influence on it.

    A row's placement is the share of the rows of the other kind that it is ranked rightly against, ties counting half;
    DeLong, DeLong and Clarke-Pearson (1988) show that the area's error is that of two means of placements.
    """
    order = np.argsort(scores)
    placements = np.empty(len(scores))
    ours, others = order[positive[order]], order[~positive[order]]
    placements[ours] = _share_below(scores[ours], scores[others])
    placements[others] = 1 - _share_below(scores[others], scores[ours])
    area = float(placements[ours].mean())
    scale = np.where(positive, len(scores) / len(ours), len(scores) / len(others))
    return area, (placements - area) * scale


def _share_below(values: FloatArray, others: FloatArray) -> DoubleArray:
    """The share of `others` (sorted) below each of `values` (sorted), equal ones counting half."""
    below = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    return np.asarray(below / (2 * len(others)))
