"""How a run went: loss, figures and learning rate over its steps, as charts; and how its samples grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fastserve.evaluation import charts, summary
from fastserve.evaluation.charts import Axis, Series

_MOST_POINTS = 200
_MOST_PROMPTS, _MOST_STAGES = 3, 6
_BITS = tuple(summary.TITLES[name] for name in ("bits_per_character", "bits_per_byte"))
_CHARTS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Loss", ("training loss", "validation loss"), False),
    ("Bits on the validation rows", _BITS, True),
    (summary.TITLES["perplexity"], (summary.TITLES["perplexity"],), True),
    ("Learning rate", ("learning rate",), False),
    ("On the validation rows", (), True),
)
"""Title, the series in it (none: all that are left), and whether their points are marked."""


def learning_curves(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Loss, validation figures and learning rate over the steps, as far as the history has them."""
    series: dict[str, list[tuple[float, float]]] = {}
    for event in history:
        for name, value in _figures(event):
            series.setdefault(name, []).append((float(event["step"]), float(value)))
    drawn = []
    for title, names, dots in _CHARTS:
        wanted = [name for name in names if name in series] if names else list(series)
        lines = [Series(name, _thin(series.pop(name)), dots=dots and name != "training loss") for name in wanted]
        if lines:
            drawn.append({"title": title, "drawing": _steps_chart(title, lines)})
    return drawn


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


def grown_samples(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was written on the first prompts at a few evaluations, the last included.

    Of events with `samples`: objects with `prompt` and `text`, the same prompts in each.
    """
    stages = [event for event in history if event.get("samples")]
    if len(stages) < 2:
        return []
    count = min(_MOST_STAGES, len(stages))
    chosen = [stages[round(place * (len(stages) - 1) / (count - 1))] for place in range(count)]
    prompts = [sample["prompt"] for sample in chosen[0]["samples"][:_MOST_PROMPTS]]
    return [{"prompt": prompt, "stages": _stages(chosen, prompt)} for prompt in prompts]


def _stages(events: Sequence[Mapping[str, Any]], prompt: str) -> list[dict[str, Any]]:
    found = []
    for event in events:
        text = next((sample["text"] for sample in event["samples"] if sample["prompt"] == prompt), None)
        if text is not None:
            found.append({"step": int(event["step"]), "text": text})
    return found
