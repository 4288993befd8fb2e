"""A report or a comparison as one HTML page that needs nothing else: no script, no font, no image from outside."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fastserve.evaluation import charts, language_summary, summary
from fastserve.evaluation.charts import Axis, Series
from fastserve.evaluation.comparison import Comparison
from fastserve.evaluation.language_comparison import LanguageComparison
from fastserve.evaluation.learning_curves import grown_samples, learning_curves
from fastserve.types import Report

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent / "templates"
_ORIGIN = re.compile(r'<section id="(?:training|data)">.*?</section>', re.DOTALL)


def report_html(
    report: Report,
    *,
    title: str = "Evaluation",
    history: Sequence[Mapping[str, Any]] | None = None,
    faults: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
    earlier: str | None = None,
) -> str:
    """The page for a report of `evaluate_classification`, `evaluate_language` or `evaluate_masked`.

    history: a run's events as JSON, of which those with `loss`, `learning_rate` or `metrics` (and `step`) are drawn,
    and `samples` shown; faults: what was found wrong in the data; lineage: how the model was made. Both are shown as
    they are. earlier: the page of the model that this one was made from, for what it says about training and data.
    """
    history = history or []
    template, shown = _page(report, history)
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            report=report,
            details=report.details,
            headlines=[name for name in summary.HEADLINES if name in report.metrics],
            kept=Markup("\n").join(map(Markup, _ORIGIN.findall(earlier or ""))),
            training=learning_curves(history),
            faults=faults,
            lineage=lineage,
            **shown,
        )
    )


def _page(report: Report, history: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The template for a report, and what it shows that others do not."""
    if report.task == "generation":
        return "language.html.j2", _language(report, history)
    return ("masked.html.j2", {}) if report.task == "masked" else ("report.html.j2", _labels(report))


def _labels(report: Report) -> dict[str, Any]:
    """What the page of a classifier has of its own."""
    details = report.details
    return {
        "sentences": summary.sentences(report),
        "confusion": _confusion(details),
        "reliability": _reliability(details["reliability"]),
        "histogram": _histogram(details["score_histogram"]),
        "curves": _threshold_charts(details["threshold_curve"], details["labels"][-1]),
        "weak": {(column, entry["value"]) for column, entry in summary.weakest_slices(report, most=1000)},
    }


def _language(report: Report, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page of a language model has of its own."""
    found = report.details["histogram"]
    axis = Axis("bits per character", found["low"], found["high"])
    entries = [entry for group in report.details["slices"].values() for entry in group["shown"]]
    return {
        "sentences": language_summary.sentences(report),
        "histogram": charts.stacked_bars(
            "How many bits a character of a row takes", axis, "rows", [("rows", found["rows"])]
        ),
        "weak": {(column, entry["value"]) for column, entry in language_summary.weakest_slices(report, most=1000)},
        "most": max((entry["bits_per_character"]["high"] for entry in entries), default=0.0) or 1.0,
        "grown": grown_samples(history),
    }


def comparison_html(comparison: Comparison | LanguageComparison, *, title: str = "Comparison") -> str:
    """The page for a comparison."""
    if isinstance(comparison, LanguageComparison):
        template = _environment().get_template("language_comparison.html.j2")
        return template.render(title=title, comparison=comparison)
    classes = sorted(comparison.details["classes"], key=lambda entry: -abs(entry["difference"]["value"]))
    ends = [abs(entry["difference"][end]) for entry in classes for end in ("low", "high")]
    return (
        _environment()
        .get_template("comparison.html.j2")
        .render(title=title, comparison=comparison, classes=classes, most=max(ends, default=1.0))
    )


def page(template: str, **shown: Any) -> str:
    """A page of another kind, by its template in this folder."""
    return _environment().get_template(template).render(**shown)


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "words": lambda key: str(key).replace("_", " ")}
    environment.globals |= {
        "style": Markup((_TEMPLATES / "style.css").read_text("utf-8")),
        "titles": summary.TITLES,
        "meanings": summary.MEANINGS,
        "figure": summary.figure,
        "interval": summary.interval,
        "interval_bar": charts.interval_bar,
        "difference_bar": charts.difference_bar,
    }
    return environment


def _percent(share: float) -> str:
    return f"{share * 100:.1f}"


def _confusion(details: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """One row an actual label: its cells with their counts and shares of the row."""
    matrix = (details["confusion"] or {}).get("matrix")
    if matrix is None:
        return None
    table = []
    for index, (label, counts) in enumerate(zip(details["labels"], matrix, strict=True)):
        support = sum(counts)
        cells = [
            {"rows": rows, "share": rows / max(support, 1), "right": column == index, "label": answered}
            for column, (rows, answered) in enumerate(zip(counts, details["labels"], strict=True))
        ]
        table.append({"label": label, "support": support, "cells": cells})
    return table


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    points = []
    for entry in bins:
        true = entry["came_true"]
        points.append((entry["claimed"], true["value"], true["low"], true["high"], entry["rows"]))
    return charts.reliability_chart("Reliability: claimed probability against the share that came true", points)


def _histogram(histogram: Mapping[str, Any]) -> Markup:
    stacks = [("right", histogram["right"]), ("wrong", histogram["wrong"])]
    axis = Axis.percentages("probability of the most probable label")
    return charts.stacked_bars("How sure the model was, right and wrong rows", axis, "rows", stacks)


def _threshold_charts(curve: Sequence[Mapping[str, float]] | None, label: str) -> list[Markup]:
    """Two labels: the ROC curve, and what moving the threshold would change."""
    if not curve:
        return []
    roc = [(0.0, 0.0), *((point["false_positive_rate"], point["true_positive_rate"]) for point in curve)]
    by_threshold = [
        Series(name, [(point["threshold"], point[key]) for point in curve])
        for name, key in (("precision", "precision"), ("recall", "true_positive_rate"), ("F1", "f1"))
    ]
    return [
        charts.line_chart(
            f"ROC curve for {label}",
            Axis.percentages("false alarms"),
            Axis.percentages("found"),
            [Series("ROC", roc)],
            diagonal=True,
        ),
        charts.line_chart(
            f"What a threshold on the probability of {label} gives",
            Axis.percentages(f"threshold for “{label}”" if len(label) <= 20 else "threshold"),
            Axis.percentages(""),
            by_threshold,
        ),
    ]
