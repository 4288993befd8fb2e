"""The report of a language model: its figures, their intervals, its page and its text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from needed_samples import scored
from pages import EVIL, Page, check_harmless

from fastserve.errors import DataError, WorkError
from fastserve.evaluation import Check, Sample, evaluate_language, report_html, report_text
from fastserve.evaluation.needed import needed
from fastserve.tasks.generation import Generation
from fastserve.types import Report


def full_report(words: str = "床前明月光", rows: int = 120) -> Report:
    sums, sizes = scored(rows)
    return evaluate_language(
        sums,
        sizes,
        texts=[f"{words} {row}" for row in range(rows)],
        slices={words: [("a", words, "c")[row % 3] for row in range(rows)]},
        samples=[Sample(words, words, "stop"), Sample("p", "", "stop"), Sample("q", words, "length")],
        checks=[Check.of(words, words, [True] * 9 + [False], [{"row": 10, "text": words, "why": words}])],
        resamples=200,
    )


def history(words: str = "p") -> list[dict[str, object]]:
    steps = [{"event": "step", "step": s, "loss": 5 / (s + 1), "learning_rate": 0.1} for s in range(300)]
    metrics = {"loss": 3.0, "perplexity": 20.0, "bits_per_character": 5.0, "bits_per_byte": 1.7}
    return [
        *steps,
        *(
            {
                "event": "evaluation",
                "step": s,
                "metrics": metrics,
                "samples": [{"prompt": words, "text": f"{words}{s}"}],
            }
            for s in range(100, 1100, 100)
        ),
    ]


def test_the_figures_are_those_of_the_evaluation_inside_a_run() -> None:
    sums, sizes = scored(200)
    report = evaluate_language(sums, sizes, resamples=100)
    quick = Generation().quick_metrics(sums, sizes)
    assert {name: report[name] for name in quick} == pytest.approx(quick, rel=1e-6)
    assert report.task == "generation"
    assert report.rows == 200


def test_figures_by_hand() -> None:
    report = evaluate_language(np.array([[2.0, 4.0], [4.0, 2.0]]), np.array([[3, 9], [3, 3]]))
    assert report["loss"] == 1.0
    assert report["perplexity"] == pytest.approx(math.e)
    assert report["bits_per_character"] == pytest.approx(6 / math.log(2) / 6)
    assert report["bits_per_byte"] == pytest.approx(6 / math.log(2) / 12)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        characters = rng.integers(5, 50, 80)
        nats = characters * rng.gamma(4.0, 0.5, 80)  # mean 2 nats a character, whatever its length
        report = evaluate_language(
            np.stack([nats, characters], 1), np.stack([characters, characters], 1), resamples=300
        )
        metric = report.metrics["loss"]
        assert metric.low is not None
        assert metric.high is not None
        hits += metric.low <= 2.0 <= metric.high
    assert hits >= 50


def test_pieces_of_one_document_are_resampled_together() -> None:
    sums, sizes = scored(50, spread=1.0)
    apart = evaluate_language(sums, sizes, rows=range(1, 51))
    pieces = np.repeat(np.arange(50), 4)
    together = evaluate_language(sums[pieces], sizes[pieces], rows=pieces + 1, texts=[f"text {p}" for p in pieces])
    assert together.rows == 50
    assert together.metrics["bits_per_byte"] == apart.metrics["bits_per_byte"]
    assert together.details["worst"][0]["text"] == f"text {together.details['worst'][0]['row'] - 1}"


def test_pieces_of_one_long_text_stay_apart() -> None:
    sums, sizes = scored(40)
    report = evaluate_language(sums, sizes, rows=[1] * 40)
    assert report.rows == 40
    metric = report.metrics["loss"]
    assert metric.low is not None
    assert metric.low < metric.value


def test_characters_that_were_counted_at_the_first_piece_are_those_of_all() -> None:
    sums, sizes = scored(40)
    first = np.zeros_like(sizes)
    first[0] = sizes.sum(0)
    report = evaluate_language(sums, first, rows=[1] * 40)
    assert report["bits_per_character"] == pytest.approx(evaluate_language(sums, sizes)["bits_per_character"])
    assert all(3 < entry["bits_per_character"] < 6 for entry in report.details["worst"])
    assert report.metrics["bits_per_byte"].high == pytest.approx(report["bits_per_byte"], rel=0.1)


def test_rows_without_a_counted_token_do_not_count() -> None:
    sums, sizes = scored(40)
    more = np.vstack([sums, np.zeros((3, 2), np.float32)]), np.vstack([sizes, np.zeros((3, 2), np.int64)])
    assert evaluate_language(*more).metrics == evaluate_language(sums, sizes).metrics


def test_the_worst_rows_are_those_that_need_most_and_are_not_tiny() -> None:
    sums, sizes = scored(100)
    sums[7], sizes[7] = (3000, 80), (100, 300)
    sums[8], sizes[8] = (60, 1), (1, 3)  # a single character by chance
    worst = evaluate_language(sums, sizes, rows=range(101, 201)).details["worst"]
    assert worst[0]["row"] == 108
    assert 109 not in {entry["row"] for entry in worst}


def test_a_slice_that_is_harder_is_named() -> None:
    easy, hard = scored(100, bits=3.0), scored(100, bits=5.0)
    report = evaluate_language(
        np.vstack([easy[0], hard[0]]), np.vstack([easy[1], hard[1]]), slices={"form": ["绝句"] * 100 + ["律诗"] * 100}
    )
    assert "does worst where form is “律诗”" in report_text(report)
    shown = {entry["value"]: entry for entry in report.details["slices"]["form"]["shown"]}
    assert shown["绝句"]["bits_per_character"]["value"] == pytest.approx(3.0, abs=0.2)
    assert shown["律诗"]["rows"] == 100


@pytest.mark.parametrize(
    ("sums", "sizes", "error", "message"),
    [
        ([[1.0, 1.0]], [[1, 1], [1, 1]], DataError, "expected \\(1, 2\\)"),
        ([[math.nan, 1.0]], [[1, 1]], WorkError, "nan nats for row 1"),
        ([[1.0, 1.0], [-3.0, 1.0]], [[1, 1], [1, 1]], WorkError, "row 2 has -3 nats"),
        ([[0.0, 0.0]], [[0, 0]], DataError, "no text to evaluate on"),
        (np.zeros((0, 2)), np.zeros((0, 2)), DataError, "no text to evaluate on"),
    ],
)
def test_wrong_figures_are_refused(sums: object, sizes: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        needed(np.array(sums), np.array(sizes))


def test_columns_must_have_a_value_for_each_row() -> None:
    sums, sizes = scored(5)
    with pytest.raises(DataError, match="slice column 'a' has 2 values, expected 5"):
        evaluate_language(sums, sizes, slices={"a": ["x", "y"]})
    with pytest.raises(DataError, match="5 rows but 1 texts"):
        evaluate_language(sums, sizes, texts=["x"])


def test_a_report_read_back_gives_the_same_page_and_text() -> None:
    report = full_report()
    again = Report.from_json(report.to_json())
    assert report_html(again) == report_html(report)
    assert report_text(again) == report_text(report)


def test_nothing_in_the_data_becomes_markup() -> None:
    page = Page(
        report_html(full_report(EVIL), title=EVIL, history=history(EVIL), faults={EVIL: [EVIL]}, lineage={EVIL: EVIL})
    )
    check_harmless(page)
    assert EVIL in "".join(page.words)


def test_the_page_shows_figures_samples_checks_and_how_it_went() -> None:
    page = Page(report_html(full_report(), history=history()))
    words = " ".join(page.words)
    for expected in (
        "Bits per character",
        "What it writes",
        "床前明月光",
        "90.0",
        "How its writing grew",
        "step 1,000",
    ):
        assert expected in words
    drawn = [
        attributes["aria-label"] for tag, attributes in page.elements if tag == "svg" and "aria-label" in attributes
    ]
    assert drawn[1:] == ["Loss", "Bits on the validation rows", "Perplexity", "Learning rate"]
    assert "nan" not in words.lower()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_few_rows_have_a_page_and_a_warning(rows: int) -> None:
    report = evaluate_language(*scored(rows))
    Page(report_html(report))
    text = report_text(report)
    assert text.startswith("The model needs ")
    assert "Evaluate on a hundred at least" in text


def test_a_model_that_knows_nothing_is_called_so() -> None:
    sums, sizes = scored(50, bits=30.0)
    assert "has not learned anything useful yet" in report_text(evaluate_language(sums, sizes))


def test_the_text_shows_samples_without_commanding_the_terminal() -> None:
    text = report_text(full_report("\x1b[2Jevil"))
    assert "\x1b" not in text
    assert "prompt: " in text
    assert "90.0%" in text
