"""A report or a comparison as one HTML page that needs nothing else: no script, no font, no image from outside."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fastserve.evaluation import charts, summary
from fastserve.evaluation.charts import Axis, Series
from fastserve.evaluation.comparison import Comparison
from fastserve.types import Report

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_POINTS = 200
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
    """The page for a report of `evaluate_classification`.

    history: a run's events as JSON, of which those with `loss`, `learning_rate` or `metrics` (and `step`) are drawn;
    faults: what was found wrong in the data; lineage: how the model was made. Both are shown as they are.
    earlier: the page of the model that this one was made from, for what it says about training and data.
    """
    details = report.details
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            report=report,
            details=details,
            sentences=summary.sentences(report),
            headlines=[name for name in summary.HEADLINES if name in report.metrics],
            confusion=_confusion(details),
            reliability=_reliability(details["reliability"]),
            histogram=_histogram(details["score_histogram"]),
            curves=_threshold_charts(details["threshold_curve"], details["labels"][-1]),
            weak={(column, entry["value"]) for column, entry in summary.weakest_slices(report, most=1000)},
            kept=Markup("\n").join(map(Markup, _ORIGIN.findall(earlier or ""))),
            training=_training(history or []),
            faults=faults,
            lineage=lineage,
        )
    )


def comparison_html(comparison: Comparison, *, title: str = "Comparison") -> str:
    """The page for a comparison."""
    classes = sorted(comparison.details["classes"], key=lambda entry: -abs(entry["difference"]["value"]))
    ends = [abs(entry["difference"][end]) for entry in classes for end in ("low", "high")]
    return (
        _environment()
        .get_template("comparison.html.j2")
        .render(title=title, comparison=comparison, classes=classes, most=max(ends, default=1.0))
    )


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


def _training(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss, validation figures and learning rate over the steps, as far as the history has them."""
    series: dict[str, list[tuple[float, float]]] = {}
    for event in history:
        for name, value in _figures(event):
            series.setdefault(name, []).append((float(event["step"]), float(value)))
    losses = [Series(name, _thin(series.pop(name))) for name in ("training loss", "validation loss") if name in series]
    rate = [Series("learning rate", _thin(series.pop("learning rate")))] if "learning rate" in series else []
    shares = [Series(name, points, dots=True) for name, points in series.items()]
    charted = [("Loss", losses), ("On the validation rows", shares), ("Learning rate", rate)]
    return [{"title": title, "drawing": _steps_chart(title, lines)} for title, lines in charted if lines]


def _figures(event: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What one event says, by the name that the charts use."""
    if "step" not in event:
        return []
    found = [("training loss", event.get("loss")), ("learning rate", event.get("learning_rate"))]
    for name, value in (event.get("metrics") or {}).items():
        found.append(("validation loss" if name == "loss" else summary.TITLES.get(name, name), value))
    return [(name, value) for name, value in found if value is not None and abs(value) < float("inf")]


def _steps_chart(title: str, lines: Sequence[Series]) -> Markup:
    points = [point for line in lines for point in line.points]
    x = Axis.around("step", [0.0, *(x for x, _ in points)])
    return charts.line_chart(title, x, Axis.around("", [y for _, y in points]), lines)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 200 points, each the mean of its neighbors, so that the trend is seen through the noise of batches."""
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
