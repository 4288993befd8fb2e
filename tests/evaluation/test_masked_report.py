"""The report of an encoder that says hidden tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastserve.errors import DataError, WorkError
from fastserve.evaluation.html import report_html
from fastserve.evaluation.masked import evaluate_masked
from fastserve.evaluation.text import report_text
from fastserve.types import Report


def sums(rows: int, seed: int = 0) -> np.ndarray:
    """Each token takes 1 to 3 nats, and every second one is said."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, 20, rows)
    return np.stack([tokens * draw.uniform(1, 3, rows), tokens / 2, tokens], 1)


def test_figures_are_over_all_tokens_with_intervals_around_them() -> None:
    found = sums(500)
    report = evaluate_masked(found, rows=np.arange(500))
    loss = found[:, 0].sum() / found[:, 2].sum()
    assert report["loss"] == pytest.approx(loss)
    assert report["perplexity"] == pytest.approx(math.exp(loss))
    assert report["accuracy"] == pytest.approx(0.5)
    low, high = report.metrics["loss"].low, report.metrics["loss"].high
    assert low is not None
    assert high is not None
    assert loss - 0.2 < low < loss < high < loss + 0.2
    assert Report.from_json(report.to_json()) == report
    assert len(report.details["notes"]) == 1


def test_pieces_of_a_text_are_resampled_together() -> None:
    found = np.repeat(sums(50), 10, axis=0)
    whole = evaluate_masked(found, rows=np.repeat(np.arange(50), 10))
    apart = evaluate_masked(found, rows=np.arange(500))
    assert whole.rows == 50
    assert whole["loss"] == pytest.approx(apart["loss"])
    widths = [(report.metrics["loss"].high or 0) - (report.metrics["loss"].low or 0) for report in (whole, apart)]
    assert widths[0] > 2 * widths[1]
    assert "only 50 texts" in whole.details["notes"][1]


def test_it_is_shown_as_text_and_as_a_page() -> None:
    report = evaluate_masked(sums(200), rows=np.arange(200))
    assert "50.0%" in report_text(report)
    page = report_html(report, title="zh-base", history=[{"event": "step", "step": 1, "loss": 2.0}])
    assert "share of hidden tokens that are said" in page
    assert "of 200 texts" in page


def test_nothing_to_judge_and_broken_figures_are_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        evaluate_masked(np.zeros((3, 3)), rows=np.arange(3))
    with pytest.raises(WorkError, match="diverged"):
        evaluate_masked(np.full((3, 3), np.nan), rows=np.arange(3))
