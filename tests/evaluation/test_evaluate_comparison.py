"""Two models on the same rows: the test, the interval and the sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged_samples import Arrays, names, several, single
from scipy.stats import binomtest
from sklearn import metrics as sk

from fastserve.evaluation import Comparison, compare
from fastserve.evaluation.comparison import mcnemar, rows_needed


def pair(rows: int, skills: tuple[float, float], seed: int = 0) -> tuple[Arrays, Arrays]:
    """Two models of different skill that find the same rows hard."""
    first, second = single(rows, 3, seed, skills[0]), single(rows, 3, seed, skills[1])
    assert (first[0] == second[0]).all()
    return first, second


@given(only_a=st.integers(0, 300), only_b=st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    rows = only_a + only_b
    expected = binomtest(only_a, rows).pvalue if rows else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-6)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_mcnemar_holds_for_very_many_rows() -> None:
    assert mcnemar(100_000, 100_900) == pytest.approx(binomtest(100_000, 200_900).pvalue, rel=1e-4)
    assert mcnemar(0, 100_000) == 0.0


def test_a_better_model_is_told_from_a_worse_one() -> None:
    (targets, worse), (_, better) = pair(2000, (1.0, 2.0))
    found = compare(targets, worse, better, names(3), names=("old", "new"))
    accuracy = found.differences["accuracy"]
    assert accuracy.a == pytest.approx(sk.accuracy_score(targets, worse.argmax(1)))
    assert accuracy.b == pytest.approx(sk.accuracy_score(targets, better.argmax(1)))
    f1 = found.differences["f1_macro"]
    assert f1.b - f1.a == pytest.approx(f1.difference.value)
    assert f1.b == pytest.approx(sk.f1_score(targets, better.argmax(1), average="macro"))
    assert found.verdict.startswith("new is better than old by ")
    back = compare(targets, better, worse, names(3), names=("new", "old"))
    assert back.verdict.startswith("new is better than old by ")
    assert back.p_value == found.p_value


def test_pairing_narrows_the_interval() -> None:
    (targets, first), (_, second) = pair(1000, (1.5, 1.7))
    paired = compare(targets, first, second, names(3)).differences["accuracy"].difference
    right_a, right_b = first.argmax(1) == targets, second.argmax(1) == targets
    draws = np.random.default_rng(0).integers(0, 1000, (2000, 1000))
    low, high = np.quantile(right_b[draws].mean(1) - right_a[draws].mean(1), (0.025, 0.975))
    assert (paired.low, paired.high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))
    apart = np.quantile(right_b[draws].mean(1) - right_a[draws[::-1]].mean(1), (0.025, 0.975))
    assert high - low < 0.7 * (apart[1] - apart[0])


def test_equal_models_are_not_told_apart() -> None:
    targets, probabilities = single(100, 3)
    same = compare(targets, probabilities, probabilities, names(3))
    assert same.p_value == 1.0
    assert "no difference can be told from these 100 rows" in same.verdict
    (_, first), (_, second) = pair(100, (1.5, 1.55))
    near = compare(targets, first, second, names(3))
    assert not near.significant


def test_the_rows_needed_give_the_promised_power() -> None:
    gain, loss = 0.10, 0.07
    rows = rows_needed(gain - loss, gain + loss)
    rng = np.random.default_rng(0)
    splits = rng.multinomial(rows, [gain, loss, 1 - gain - loss], size=600)
    found = sum(mcnemar(int(a), int(b)) < 0.05 for a, b, _ in splits)
    assert 0.74 < found / 600 < 0.86


def test_changed_rows_are_listed_by_kind() -> None:
    targets = np.array([0, 0, 1, 1])
    a = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], np.float32)
    b = np.array([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.9, 0.1]], np.float32)
    changed = compare(targets, a, b, ["no", "yes"], texts=list("wxyz"), rows=[2, 3, 4, 5]).details["changed"]
    assert [entry["row"] for entry in changed["mended"]["shown"]] == [3]
    assert [entry["text"] for entry in changed["broken"]["shown"]] == ["y"]
    assert changed["still_wrong"]["rows"] == 0


@pytest.mark.parametrize("make", [single, several])
def test_the_json_is_strict_and_comes_back(make: type) -> None:
    targets, a = make(60, 4, seed=0)
    found = compare(targets, a, np.roll(a, 1, axis=0), names(4), resamples=100)
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Comparison.from_json(value) == found
