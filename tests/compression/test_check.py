"""When a form may stand for the weights."""

from __future__ import annotations

import numpy as np
import pytest

from fastserve.compression.check import Check, Limits, compare
from fastserve.compression.forms import sample
from fastserve.compression.options import ExportOptions
from fastserve.errors import WorkError


def check(*, drop: float = 0.0, agreement: float = 1.0, difference: float = 0.05, labelled: bool = True) -> Check:
    accuracies = (0.9, 0.9 - drop) if labelled else (None, None)
    return Check(1000, agreement, difference, difference / 2, *accuracies)


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        (check(), True),
        (check(drop=0.005), True),
        (check(drop=0.006), False),
        (check(drop=-0.1), True),
        (check(agreement=0.969), False),
        (check(agreement=0.97), True),
        (check(labelled=False), False),
        (check(labelled=False, difference=1e-4), True),
        (check(drop=0.006, difference=1e-4), True),  # equal to rounding: a text on the edge fell to the other side
    ],
)
def test_the_limits(found: Check, passes: bool) -> None:
    assert found.passes(Limits(max_drop=0.005, min_agreement=0.97)) is passes


def test_points_are_hundredths() -> None:
    assert ExportOptions(runtime="onnx", max_drop=0.5).limits == Limits(0.005, 0.97)


def test_the_figures_of_one_label_a_text() -> None:
    before = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]], np.float32)
    after = np.array([[0.8, 0.2], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], np.float32)
    found = compare(before, after, np.array([0, 0, 1, 0]), multi_label=False)
    assert (found.texts, found.agreement, found.accuracy_torch, found.accuracy) == (4, 0.75, 0.75, 0.5)
    assert found.max_difference == pytest.approx(0.2)
    assert found.mean_difference == pytest.approx(0.075)
    assert found.figures().keys() == set(Check.__dataclass_fields__)
    assert compare(before, after, None, multi_label=False).figures().keys() == set(Check.__dataclass_fields__) - {
        "accuracy",
        "accuracy_torch",
    }


def test_the_figures_of_several_labels_a_text() -> None:
    before = np.array([[0.9, 0.6], [0.6, 0.4]], np.float32)
    after = np.array([[0.9, 0.4], [0.6, 0.4]], np.float32)
    found = compare(before, after, np.array([[1, 1], [1, 0]], np.float32), multi_label=True)
    assert (found.agreement, found.accuracy_torch, found.accuracy) == (0.5, 1.0, 0.5)


def test_what_is_no_number_is_an_error() -> None:
    scores = np.full((2, 2), 0.5, np.float32)
    with pytest.raises(WorkError, match="not numbers"):
        compare(scores, scores * np.nan, None, multi_label=False)


def test_a_sample_is_repeatable_and_from_everywhere() -> None:
    texts = [str(number) for number in range(1000)]
    found = sample(iter(texts), 100)
    assert found == sample(iter(texts), 100)
    assert len(set(found)) == 100
    assert 350 < np.mean([int(text) for text in found]) < 650
    assert sample(iter(texts[:5]), 100) == texts[:5]
