"""Point figures agree with scikit-learn; degenerate data gives figures or a sentence, never NaN."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_samples import names, several, single
from sklearn import metrics as sk
from threadpoolctl import threadpool_limits

from fastserve.errors import DataError, WorkError
from fastserve.evaluation import evaluate_classification
from fastserve.types import Report

Array = npt.NDArray[Any]


def strict(report: Report) -> dict[str, Any]:
    """The report as JSON and back; fails on NaN and on anything that is not JSON."""
    return json.loads(json.dumps(report.to_json(), allow_nan=False))  # type: ignore[no-any-return]


def expect_rates(report: Report, actual: Array, predicted: Array, **options: Any) -> None:
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(actual, predicted))
    for average in ("macro", "micro", "weighted"):
        scores = sk.precision_recall_fscore_support(actual, predicted, average=average, zero_division=0, **options)
        for name, score in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            assert report[f"{name}_{average}"] == pytest.approx(score), (name, average)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 80), labels=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_rates_agree_with_scikit_learn(rows: int, labels: int, seed: int) -> None:
    targets, probabilities = single(rows, labels, seed, skill=1.0)
    report = evaluate_classification(targets, probabilities, names(labels), resamples=50)
    predicted = probabilities.argmax(1)
    expect_rates(report, targets, predicted)
    everything = list(range(labels))
    scores = sk.precision_recall_fscore_support(targets, predicted, labels=everything, zero_division=0)
    for found, precision, recall, f1, support in zip(report.details["classes"], *scores, strict=True):
        assert found["support"] == support
        values = [found[name]["value"] for name in ("precision", "recall", "f1")]
        assert values == pytest.approx([precision, recall, f1])
    assert report.details["confusion"]["matrix"] == sk.confusion_matrix(targets, predicted, labels=everything).tolist()
    assert strict(report) == Report.from_json(strict(report)).to_json()


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 60), labels=st.integers(2, 5), seed=st.integers(0, 10_000))
def test_several_labels_a_row_agree_with_scikit_learn(rows: int, labels: int, seed: int) -> None:
    targets, probabilities = several(rows, labels, seed)
    report = evaluate_classification(targets, probabilities, names(labels), resamples=50)
    expect_rates(report, targets, (probabilities >= 0.5).astype(int))
    losses = [sk.log_loss(targets[:, c], probabilities[:, c], labels=[0, 1]) for c in range(labels)]
    assert report["log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    strict(report)


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_probability_figures_agree_with_scikit_learn(labels: int) -> None:
    targets, probabilities = single(400, labels)
    probabilities = np.round(probabilities, 2)  # ties
    probabilities /= probabilities.sum(1, keepdims=True)
    report = evaluate_classification(targets, probabilities, names(labels))
    area = sk.roc_auc_score(targets, probabilities[:, 1] if labels == 2 else probabilities, multi_class="ovr")
    assert report["roc_auc"] == pytest.approx(area)
    assert report["log_loss"] == pytest.approx(sk.log_loss(targets, probabilities), rel=1e-5)
    if labels == 2:
        assert report["brier"] == pytest.approx(sk.brier_score_loss(targets, probabilities[:, 1]), rel=1e-5)
    else:
        squares = ((probabilities - np.eye(labels)[targets]) ** 2).sum(1)
        assert report["brier"] == pytest.approx(squares.mean(), rel=1e-5)


def test_calibration_error_agrees_with_the_plain_definition() -> None:
    targets, probabilities = single(500, 4)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
    report = evaluate_classification(targets, probabilities, names(4))
    assert report["calibration_error"] == pytest.approx(expected, rel=1e-5)
    assert sum(entry["rows"] for entry in report.details["reliability"]) == 500


@pytest.mark.parametrize(("rows", "seen"), [(1, [0]), (5, [1]), (40, [0, 1])])
def test_few_rows_and_absent_labels_give_figures_and_notes(rows: int, seen: list[int]) -> None:
    targets, probabilities = single(rows, 3)
    targets = np.resize(seen, rows)
    report = evaluate_classification(targets, probabilities, names(3))
    strict(report)
    assert ("roc_auc" in report.metrics) == (len(seen) > 1)
    assert any("label 2" in note for note in report.details["notes"])


@pytest.mark.parametrize("targets", [np.zeros(5, int), np.ones((5, 1), int)])
def test_a_single_label_is_judged_too(targets: Array) -> None:
    report = evaluate_classification(targets, np.ones((5, 1), np.float32), ["only"])
    strict(report)
    assert report["accuracy"] == 1.0
    assert any("same answer" in note for note in report.details["notes"])


def test_numbers_that_no_sound_model_gives_are_refused() -> None:
    targets, probabilities = single(10, 3)
    broken = probabilities.copy()
    broken[4, 1] = np.nan
    with pytest.raises(WorkError, match=r"nan as the probability of 'label 1' in row 104 .1 rows of 10"):
        evaluate_classification(targets, broken, names(3), rows=np.arange(100, 110))
    with pytest.raises(WorkError, match="softmax"):
        evaluate_classification(targets, np.log(probabilities), names(3))
    with pytest.raises(WorkError, match="add up to"):
        evaluate_classification(targets, probabilities / 2, names(3))


def test_answers_that_do_not_fit_are_refused() -> None:
    targets, probabilities = single(10, 3)
    with pytest.raises(DataError, match="no rows"):
        evaluate_classification(targets[:0], probabilities[:0], names(3))
    with pytest.raises(DataError, match=r"shape \(10, 3\), expected \(10, 4\)"):
        evaluate_classification(targets, probabilities, names(4))
    with pytest.raises(DataError, match="between 0 and 3, expected 0 to 2"):
        evaluate_classification(np.append(targets[:9], 3), probabilities, names(3))
    with pytest.raises(DataError, match="9 texts"):
        evaluate_classification(targets, probabilities, names(3), texts=["x"] * 9)
    with pytest.raises(DataError, match="'domain' has 2 values, expected 10"):
        evaluate_classification(targets, probabilities, names(3), slices={"domain": ["a", "b"]})


def test_mistakes_are_the_surest_wrong_rows_with_their_texts() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]], np.float32)
    report = evaluate_classification(
        np.array([1, 1, 0, 0]), probabilities, ["坏", "好"], texts=["a", "b", "c", "d" * 5000], rows=[2, 3, 4, 5]
    )
    found = report.details["mistakes"]
    assert [mistake["row"] for mistake in found] == [2, 5, 4]
    assert (found[0]["actual"], found[0]["predicted"], found[0]["text"]) == ("好", "坏", "a")
    assert found[0]["score"] == pytest.approx(0.9)
    assert len(found[1]["text"]) < 1000


def test_slices_find_the_weak_part() -> None:
    targets, probabilities = single(600, 3, skill=4.0)
    domains = ["hotel" if row % 3 else "book" for row in range(600)]
    weak = np.array([domain == "book" for domain in domains])
    probabilities[weak] = probabilities[weak][:, [1, 2, 0]]
    report = evaluate_classification(targets, probabilities, names(3), slices={"domain": domains})
    hotel, book = report.details["slices"]["domain"]["shown"]
    assert (hotel["value"], hotel["rows"], book["rows"]) == ("hotel", 400, 200)
    predicted = probabilities.argmax(1)
    assert hotel["accuracy"]["value"] == pytest.approx(sk.accuracy_score(targets[~weak], predicted[~weak]))
    assert book["f1_macro"]["value"] == pytest.approx(sk.f1_score(targets[weak], predicted[weak], average="macro"))
    assert book["accuracy"]["high"] < hotel["accuracy"]["low"]


def test_threshold_curve_agrees_with_scikit_learn() -> None:
    targets, probabilities = single(80, 2)
    probabilities = np.round(probabilities, 1)
    curve = evaluate_classification(targets, probabilities, names(2)).details["threshold_curve"]
    false, true, thresholds = sk.roc_curve(targets, probabilities[:, 1], drop_intermediate=False)
    assert [point["false_positive_rate"] for point in curve] == pytest.approx(false[1:])
    assert [point["true_positive_rate"] for point in curve] == pytest.approx(true[1:])
    assert [point["threshold"] for point in curve] == pytest.approx(thresholds[1:])
    for point in curve:
        f1 = sk.f1_score(targets, probabilities[:, 1] >= np.float32(point["threshold"]))
        assert point["f1"] == pytest.approx(f1)


def test_many_labels_keep_the_report_small() -> None:
    targets, probabilities = single(300, 200)
    report = evaluate_classification(targets, probabilities, names(200), resamples=100)
    assert report.details["confusion"]["matrix"] is None
    assert 0 < len(report.details["confusion"]["largest"]) <= 20


def test_the_seed_decides_the_intervals() -> None:
    targets, probabilities = single(300, 3)
    first, again, other = (evaluate_classification(targets, probabilities, names(3), seed=s) for s in (0, 0, 1))
    assert first.to_json() == again.to_json()
    assert first.metrics["f1_macro"] != other.metrics["f1_macro"]


def test_the_report_of_a_usual_test_set_takes_under_a_second() -> None:
    targets, probabilities = single(12_000, 15)
    columns = {"domain": [f"domain {row % 10}" for row in range(12_000)]}
    with threadpool_limits(1):  # threads that wait for each other on a busy machine would be counted as work
        start = time.process_time()
        evaluate_classification(targets, probabilities, names(15), texts=["文"] * 12_000, slices=columns)
        assert time.process_time() - start < 1.0
