"""Labels to targets, logits to answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from hypothesis.extra import numpy as arrays
from sklearn import metrics
from torch import nn

from fastserve.errors import DataError
from fastserve.tasks.classification import Classification, balanced_weights

LOGITS = arrays.arrays(np.float32, (7, 3), elements=strategies.integers(-40, 40).map(lambda number: number / 4))


class Given(nn.Module):
    """A network whose logits are its input."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return inputs["logits"]


@given(LOGITS, strategies.booleans())
def test_probabilities_are_probabilities(logits: np.ndarray, multi_label: bool) -> None:
    found = Classification(["a", "b", "c"], multi_label=multi_label).probabilities(logits)
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()
    if not multi_label:
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_an_answer_names_the_most_probable_label() -> None:
    task = Classification(["negative", "positive"])
    answer = task.decode(task.probabilities(np.array([[0.0, 2.0]], np.float32)))[0]
    assert answer.label == "positive"
    assert answer.score == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-5)
    assert list(answer.scores) == ["negative", "positive"]


def test_several_labels_are_those_over_one_half() -> None:
    task = Classification(["a", "b", "c"], multi_label=True)
    answer = task.decode(task.probabilities(np.array([[3.0, -3.0, 1.0]], np.float32)))[0]
    assert answer.label == ["a", "c"]
    assert task.targets([("a", "c"), ()]).tolist() == [[1, 0, 1], [0, 0, 0]]


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(DataError, match="did you mean 'positive'"):
        Classification(["negative", "positive"]).targets([("positve",)])


@given(LOGITS)
def test_quick_metrics_agree_with_scikit_learn(logits: np.ndarray) -> None:
    targets = np.array([0, 1, 2, 0, 1, 2, 0])
    found = Classification(["a", "b", "c"]).quick_metrics(logits, targets)
    predicted = logits.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(targets, predicted))
    expected = metrics.f1_score(targets, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
    assert found["f1_macro"] == pytest.approx(expected)


THIRDS = (slice(0, 2), slice(2, 3), slice(3, 5))


def test_loss_weights_and_smoothing_are_those_of_torch() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    task = Classification(["a", "b", "c"], label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5])
    weight = torch.tensor([1.0, 2.0, 0.5])
    expected = nn.functional.cross_entropy(logits, targets, weight, label_smoothing=0.1, reduction="sum") / len(targets)
    torch.testing.assert_close(task.loss(Given(), {"logits": logits}, targets), expected)
    parts = [task.loss(Given(), {"logits": logits[part]}, targets[part]) * len(targets[part]) for part in THIRDS]
    torch.testing.assert_close(sum(parts) / len(targets), expected)


def test_balanced_weights_are_scikit_learns() -> None:
    assert balanced_weights(np.array([90, 10])) == pytest.approx([100 / 180, 5.0])
