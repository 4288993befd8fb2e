"""Simulated policies side by side, as one page: how long requests took, and who waited."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup

from fastserve import files
from fastserve.evaluation import charts
from fastserve.evaluation.charts import Axis, Series
from fastserve.evaluation.html import page
from fastserve.generation.figures import TIMES, figures
from fastserve.generation.simulator import Outcome, Times

_POINTS = 101


def write_simulation(folder: Path, outcomes: Mapping[str, Outcome], *, title: str) -> Path:
    """simulation.json and simulation.html in `folder`; the path of the page. StorageError where that fails."""
    found = {name: figures(outcome) for name, outcome in outcomes.items()}
    with files.disk_errors(f"writing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "simulation.json", found)
    files.write_text(folder / "simulation.html", simulation_html(outcomes, title=title))
    return folder / "simulation.html"


def simulation_html(outcomes: Mapping[str, Outcome], *, title: str) -> str:
    """The page for policies and their outcomes over the same requests."""
    return page(
        "simulation.html.j2",
        title=title,
        found={name: figures(outcome) for name, outcome in outcomes.items()},
        times=TIMES,
        charts=[
            *(
                (f"Share of the requests by {shown}", _distribution(name, shown, outcomes))
                for name, shown in TIMES.items()
            ),
            ("Mean completion by size", _by_size(outcomes)),
        ],
    )


def _distribution(name: str, shown: str, outcomes: Mapping[str, Outcome]) -> Markup:
    """Which share of the requests took at most so long, on a logarithmic scale: its ticks are powers of ten."""
    levels = np.linspace(0, 0.999, _POINTS)
    series = []
    for policy, outcome in outcomes.items():
        values = _served(getattr(outcome, name))
        if len(values):
            logs = np.log10(np.maximum(np.quantile(values, levels), 1e-3))
            series.append(Series(policy, list(zip(logs.tolist(), levels.tolist(), strict=True))))
    ends = [x for line in series for x, _ in line.points] or [0.0]
    axis = Axis(f"{shown}, power of ten", min(ends), max(max(ends), min(ends) + 0.1))
    return charts.line_chart(f"Requests that took at most so long: {shown}", axis, Axis.percentages("requests"), series)


def _by_size(outcomes: Mapping[str, Outcome]) -> Markup:
    """Mean completion of each tenth of the requests, from the shortest to the longest."""
    series = []
    for policy, outcome in outcomes.items():
        served = ~np.isnan(outcome.completion)
        order = np.argsort(outcome.alone[served], kind="stable")
        tenths = np.array_split(outcome.completion[served][order], 10)
        points = [(float(number), float(tenth.mean())) for number, tenth in enumerate(tenths, 1) if len(tenth)]
        series.append(Series(policy, points, dots=True))
    values = [y for line in series for _, y in line.points] or [0.0]
    axis = Axis("tenth of the requests, shortest to longest", 1, 10)
    return charts.line_chart("Mean completion by size", axis, Axis.around("seconds", [0.0, *values]), series)


def _served(values: Times) -> Times:
    return values[~np.isnan(values)]
