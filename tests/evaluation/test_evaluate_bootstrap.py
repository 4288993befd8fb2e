"""Resampling by counts gives what resampling rows gives, and the intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_samples import names, several, single
from sklearn import metrics as sk

from fastserve.evaluation import bootstrap, evaluate_classification
from fastserve.evaluation.inputs import judge
from fastserve.evaluation.outcomes import Outcomes
from fastserve.evaluation.probabilities import roc_auc


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 60), labels=st.integers(2, 5), seed=st.integers(0, 1000), multi=st.booleans())
def test_every_resample_has_the_figures_that_scikit_learn_gives(rows: int, labels: int, seed: int, multi: bool) -> None:
    targets, probabilities = several(rows, labels, seed) if multi else single(rows, labels, seed, skill=1.0)
    judged = judge(targets, probabilities, names(labels))
    outcomes = Outcomes.of(judged)
    counts = bootstrap.resample_counts(outcomes.counts, 5, np.random.default_rng(seed))
    figures = outcomes.rates(counts).averages()
    for resample in range(5):
        sample = np.repeat(_row_of_each_outcome(judged.targets, judged.predicted, outcomes), counts[:, resample])
        actual, predicted = judged.targets[sample], judged.predicted[sample]
        assert figures["accuracy"][resample] == pytest.approx(sk.accuracy_score(actual, predicted))
        for average in ("macro", "micro", "weighted"):
            scores = sk.precision_recall_fscore_support(actual, predicted, average=average, zero_division=0)
            for name, score in zip(("precision", "recall", "f1"), scores[:3], strict=True):
                assert figures[f"{name}_{average}"][resample] == pytest.approx(score)


def _row_of_each_outcome(targets: np.ndarray, predicted: np.ndarray, outcomes: Outcomes) -> np.ndarray:
    """Some row with each outcome, found through the outcomes' marks."""
    size = outcomes.num_labels
    found = []
    for outcome in range(len(outcomes.counts)):
        actual = outcomes.actual.labels[outcomes.actual.outcomes == outcome]
        guessed = outcomes.predicted.labels[outcomes.predicted.outcomes == outcome]
        if targets.ndim == 1:
            same = (targets == actual[0]) & (predicted == guessed[0])
        else:
            same = (targets == np.isin(np.arange(size), actual)).all(1)
            same &= (predicted == np.isin(np.arange(size), guessed)).all(1)
        assert same.sum() == outcomes.counts[outcome]
        found.append(int(np.flatnonzero(same)[0]))
    return np.array(found)


@pytest.mark.parametrize("counts", [[70, 20, 10], [1, 1, 2]])  # by multinomial, and row by row
def test_resampled_counts_spread_as_a_multinomial_does(counts: list[int]) -> None:
    total = sum(counts)
    drawn = bootstrap.resample_counts(np.array(counts), 20_000, np.random.default_rng(0))
    assert (drawn.sum(0) == total).all()
    shares = np.array(counts) / total
    assert drawn.mean(1) == pytest.approx(total * shares, rel=0.03)
    assert drawn.var(1) == pytest.approx(total * shares * (1 - shares), rel=0.05)


def test_means_of_many_rows_spread_as_resampled_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = np.random.default_rng(0).exponential(size=(1500, 2))
    figures[:, 1] += figures[:, 0]
    exact = bootstrap.resample_means(figures, 2000, np.random.default_rng(1))
    monkeypatch.setattr(bootstrap, "EXACT_ROWS", 100)
    normal = bootstrap.resample_means(figures, 2000, np.random.default_rng(1))
    assert normal.mean(1) == pytest.approx(exact.mean(1), rel=0.01)
    assert np.cov(normal) == pytest.approx(np.cov(exact), rel=0.15)


def test_the_spread_of_the_area_is_that_of_resampled_rows() -> None:
    targets, probabilities = single(300, 2, skill=1.0)
    found = roc_auc(judge(targets, probabilities, names(2)))
    assert found is not None
    area, influence = found
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 300, 300) for _ in range(400)]
    areas = [sk.roc_auc_score(targets[draw], probabilities[draw, 1]) for draw in draws]
    linear = [area + influence[draw].mean() for draw in draws]
    assert np.std(linear) == pytest.approx(np.std(areas), rel=0.05)
    assert np.corrcoef(linear, areas)[0, 1] > 0.99


def test_the_95_percent_intervals_cover_about_95_percent() -> None:
    """The truth is known for made-up data: what a very large sample gives."""
    truth = evaluate_classification(*single(200_000, 3, seed=99), names(3), resamples=100)
    covered = dict.fromkeys(("accuracy", "f1_macro", "log_loss", "roc_auc", "brier"), 0)
    trials = 150
    for trial in range(trials):
        report = evaluate_classification(*single(300, 3, seed=trial), names(3), resamples=300)
        for name in covered:
            metric = report.metrics[name]
            assert metric.low is not None
            assert metric.high is not None
            assert metric.low <= metric.value <= metric.high
            covered[name] += metric.low <= truth[name] <= metric.high
    assert all(0.89 <= count / trials <= 0.995 for count in covered.values()), covered


def test_the_interval_of_a_share_is_wilsons() -> None:
    metric = bootstrap.share_metric(8, 10)
    assert (metric.low, metric.high) == (pytest.approx(0.4901625), pytest.approx(0.9433178))
    assert bootstrap.share_metric(5, 5).low == pytest.approx(0.5655175)
    assert bootstrap.share_metric(0, 5).low == 0.0


@pytest.mark.parametrize("make", [single, several])
def test_the_fast_totals_are_those_added_label_by_label(make: type) -> None:
    targets, probabilities = make(200, 6)
    outcomes = Outcomes.of(judge(targets, probabilities, names(6)))
    counts = bootstrap.resample_counts(outcomes.counts, 20, np.random.default_rng(0))
    for marks in (outcomes.actual, outcomes.predicted, outcomes.hits):
        assert (marks.totals(counts, 6) == marks.totals_by_label(counts, 6)).all()


def test_a_perfect_score_on_few_rows_is_not_taken_for_certainty() -> None:
    report = evaluate_classification(np.array([0, 1, 0, 1]), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], names(2))
    assert report["accuracy"] == 1.0
    assert report.metrics["accuracy"].low == pytest.approx(0.5101, abs=1e-3)
