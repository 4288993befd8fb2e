"""The pages and the terminal text: whole, self-contained, and deaf to what the data would have them do."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from judged_samples import names, several, single
from pages import EVIL, Page, check_harmless
from threadpoolctl import threadpool_limits

from fastserve.evaluation import (
    charts,
    compare,
    comparison_html,
    comparison_text,
    evaluate_classification,
    report_html,
    report_text,
)
from fastserve.evaluation.text import width
from fastserve.types import Report


def evil_report(labels: int = 3) -> Report:
    targets, probabilities = single(200, labels, skill=1.0)
    spoiled = [*names(labels)[1:], EVIL]
    return evaluate_classification(
        targets, probabilities, spoiled, texts=[EVIL] * 200, slices={EVIL: [EVIL, "b"] * 100}, resamples=100
    )


def history() -> list[dict[str, object]]:
    steps = [{"event": "step", "step": s, "loss": 1 / (s + 1), "learning_rate": 0.1} for s in range(500)]
    return [
        {"event": "resumed", "step": 0, "epoch": 0},
        *steps,
        {"event": "evaluation", "step": 500, "metrics": {"loss": 0.3, "accuracy": 0.8, EVIL: 0.1}},
    ]


def test_nothing_in_the_data_becomes_markup() -> None:
    page = Page(
        report_html(evil_report(), title=EVIL, history=history(), faults={EVIL: [EVIL]}, lineage={"a": {EVIL: EVIL}})
    )
    check_harmless(page)
    assert EVIL in "".join(page.words)
    check_harmless(Page(report_html(evil_report(2))))


def test_a_comparison_is_as_harmless() -> None:
    targets, a = single(100, 3)
    found = compare(targets, a, np.roll(a, 1, axis=0), [EVIL, "b", "c"], names=(EVIL, "new"), texts=[EVIL] * 100)
    page = Page(comparison_html(found, title=EVIL))
    check_harmless(page)
    assert found.verdict in "".join(page.words)


def test_a_page_needs_nothing_from_outside() -> None:
    text = report_html(evil_report(), history=history())
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text


def test_every_chart_has_a_name_for_those_who_cannot_see_it() -> None:
    page = Page(report_html(evil_report(2), history=history()))
    drawn = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("role") == "img"]
    assert len(drawn) == 4 + 3  # reliability, histogram, ROC, threshold; loss, validation, learning rate
    assert all(attributes["aria-label"] for attributes in drawn)
    assert [a["lang"] for tag, a in page.elements if tag == "html"] == ["en"]


@pytest.mark.parametrize("labels", [2, 12, 70])
def test_a_report_read_back_gives_the_same_page(labels: int) -> None:
    targets, probabilities = single(150, labels)
    report = evaluate_classification(targets, probabilities, names(labels), resamples=100)
    assert report_html(Report.from_json(report.to_json())) == report_html(report)


@pytest.mark.parametrize("rows", [1, 2, 60])
def test_small_and_many_label_reports_have_pages(rows: int) -> None:
    for targets, probabilities in (single(rows, 3), single(rows, 2), several(rows, 3)):
        report = evaluate_classification(targets, probabilities, names(probabilities.shape[1]), resamples=100)
        words = "".join(Page(report_html(report)).words)
        assert "nan" not in words.lower()
        assert report_text(report).startswith("The model ")


def test_the_page_names_the_figures_and_the_worst_mistake() -> None:
    report = evil_report()
    words = " ".join(Page(report_html(report)).words)
    assert f"{report['accuracy'] * 100:.1f}%" in words
    assert f"{report.details['mistakes'][0]['score'] * 100:.1f}% sure" in words


def test_the_summary_says_which_way_the_probabilities_err() -> None:
    targets, probabilities = single(2000, 2, skill=1.0)
    sure = np.where(probabilities > 0.5, 0.99, 0.01).astype(np.float32)
    text = report_text(evaluate_classification(targets, sure, names(2)))
    assert "too sure of itself" in text
    unsure = (0.5 + (probabilities - 0.5) * 0.1).astype(np.float32)
    assert "not sure enough" in report_text(evaluate_classification(targets, unsure, names(2)))


def test_a_useless_model_is_called_so() -> None:
    probabilities = np.tile(np.array([0.4, 0.6], np.float32), (50, 1))
    text = report_text(evaluate_classification(np.array([0] * 30 + [1] * 20), probabilities, ["a", "b"]))
    assert "has not learned anything useful" in text


def test_the_terminal_text_is_aligned_in_chinese_too() -> None:
    targets, probabilities = single(300, 3)
    text = report_text(evaluate_classification(targets, probabilities, ["财经新闻", "sport", "a\x1b[2Jb"]))
    block = text.split("\n\n")[2].splitlines()
    assert block[0].startswith("label")
    assert len({width(line) for line in block}) == 1
    assert "\x1b" not in text


def test_the_weakest_labels_are_shown_where_there_are_many() -> None:
    targets, probabilities = single(600, 40)
    text = report_text(evaluate_classification(targets, probabilities, names(40), resamples=100))
    assert "(the 20 weakest of 40 labels)" in text


def test_a_comparison_as_text_has_the_verdict_and_both_figures() -> None:
    targets, a = single(100, 3)
    found = compare(targets, a, a, names(3), names=("old", "new"))
    text = comparison_text(found)
    assert text.startswith(found.verdict)
    assert text.count(f"{found.differences['accuracy'].a * 100:.1f}%") >= 2


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7), (0, 123456), (1e-5, 3e-5), (0.81, 0.83)])
def test_axes_have_a_few_round_ticks(low: float, high: float) -> None:
    ticks = charts.Axis("", low, high).ticks()
    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-9 <= tick <= high * 1.000001 + 1e-12 for tick in ticks)


def test_an_axis_holds_a_single_value() -> None:
    for value in (0.0, 0.5, -2.0):
        axis = charts.Axis.around("loss", [value])
        assert axis.low < value < axis.high or (value == 0 and axis.low <= 0 < axis.high)
        assert axis.ticks()


def test_evaluation_and_page_of_a_usual_test_set_take_under_a_second() -> None:
    targets, probabilities = single(12_000, 15)
    with threadpool_limits(1):  # threads that wait for each other on a busy machine would be counted as work
        start = time.process_time()
        report = evaluate_classification(
            targets, probabilities, names(15), texts=["文字"] * 12_000, slices={"domain": ["a", "b", "c", "d"] * 3000}
        )
        report_html(report, history=history())
        assert time.process_time() - start < 1.0
