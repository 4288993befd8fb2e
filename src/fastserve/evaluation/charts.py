"""Small charts as inline SVG: no script, no outside resource; colors come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 20, 12, 40


@dataclass(frozen=True)
class Series:
    """A line: its points (x, y), how it is called, and whether the points are marked."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`."""

    title: str
    low: float = 0.0
    high: float = 1.0
    percent: bool = False

    @classmethod
    def percentages(cls, title: str) -> Axis:
        """From 0 to 100 %."""
        return cls(title, percent=True)

    @classmethod
    def around(cls, title: str, values: Sequence[float]) -> Axis:
        """A scale with room for `values` (at least one)."""
        low, high = min(values), max(values)
        if low == high:
            low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
        return cls(title, 0.0 if 0 <= low < (high - low) else low, high)

    def ticks(self) -> list[float]:
        """Four to nine round values within the scale."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda candidate: abs(candidate - rough))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def label(self, value: float) -> str:
        if self.percent:
            return f"{value * 100:.0f}%"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

    def share(self, value: float) -> float:
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Frame:
    """The drawing area with its two axes."""

    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        return _LEFT + self.x.share(value) * (WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        return HEIGHT - _BOTTOM - self.y.share(value) * (HEIGHT - _TOP - _BOTTOM)

    def drawn(self) -> list[str]:
        """Grid lines, tick labels and axis titles."""
        parts = []
        for tick in self.y.ticks():
            y = self.up(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{self.y.label(tick)}</text>')
        for tick in self.x.ticks():
            x, y = self.across(tick), HEIGHT - _BOTTOM + 16
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{self.x.label(tick)}</text>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(
            f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self.x.title)}</text>'
        )
        side = (HEIGHT - _BOTTOM + _TOP) / 2
        parts.append(
            f'<text class="axis" x="12" y="{side}" text-anchor="middle" transform="rotate(-90 12 {side})">'
            f"{escape(self.y.title)}</text>"
        )
        return parts


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series], *, diagonal: bool = False) -> Markup:
    """Lines on common axes; `diagonal` adds the line of equality."""
    frame = Frame(x, y)
    parts = frame.drawn()
    if diagonal:
        parts.append(_polyline(frame, [(x.low, y.low), (x.high, y.high)], "diagonal"))
    for index, line in enumerate(series):
        parts.append(_polyline(frame, line.points, f"line s{index % 4}"))
        if line.dots:
            parts.extend(
                _dot(frame, point, f"{line.name}: {x.label(point[0])}, {y.label(point[1])}", index)
                for point in line.points
            )
    return _svg(title, parts) + _legend([line.name for line in series])


def reliability_chart(title: str, bins: Sequence[tuple[float, float, float, float, int]]) -> Markup:
    """Claimed probability against what came true: (claimed, came true, low, high, rows) for each bin, with whiskers."""
    frame = Frame(Axis.percentages("claimed probability"), Axis.percentages("came true"))
    parts = [*frame.drawn(), _polyline(frame, [(0, 0), (1, 1)], "diagonal")]
    for claimed, _, low, high, _ in bins:
        x = frame.across(claimed)
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.up(low):.1f}" y2="{frame.up(high):.1f}"/>'
        )
    parts.append(_polyline(frame, [(claimed, true) for claimed, true, *_ in bins], "line s0"))
    for claimed, true, _, _, rows in bins:
        parts.append(_dot(frame, (claimed, true), f"claimed {claimed:.1%}, came true {true:.1%}, {rows:,} answers", 0))
    return _svg(title, parts)


def stacked_bars(title: str, x: Axis, y_title: str, stacks: Sequence[tuple[str, Sequence[int]]]) -> Markup:
    """Bars of equal width from x.low to x.high, one number a bar for each of `stacks`, from the bottom up."""
    totals = [sum(bar) for bar in zip(*(values for _, values in stacks), strict=True)]
    frame = Frame(x, Axis(y_title, 0.0, max(*totals, 1)))
    parts, base = frame.drawn(), [0] * len(totals)
    width = (WIDTH - _LEFT - _RIGHT) / len(totals)
    for index, (name, values) in enumerate(stacks):
        for bar, value in enumerate(values):
            top, bottom = frame.up(base[bar] + value), frame.up(base[bar])
            if value:
                parts.append(
                    f'<rect class="bar s{index}" x="{_LEFT + bar * width + 0.75:.1f}" y="{top:.1f}" '
                    f'width="{width - 1.5:.1f}" height="{max(bottom - top, 0.5):.1f}">'
                    f"<title>{escape(name)}: {value:,}</title></rect>"
                )
            base[bar] += value
    return _svg(title, parts) + _legend([name for name, _ in stacks])


def interval_bar(value: float, low: float, high: float) -> Markup:
    """A share as a bar from 0 to 1 with its interval as a whisker."""
    return Markup(
        '<svg class="interval" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="10"/><rect class="bar s0" width="{value * 100:.2f}" height="10"/>'
        f'<rect class="span" x="{low * 100:.2f}" y="3.5" width="{max((high - low) * 100, 0.4):.2f}" height="3"/></svg>'
    )


def difference_bar(value: float, low: float, high: float, most: float) -> Markup:
    """A difference as a bar to the left or right of zero, on a scale from -most to most."""
    scale = 50 / max(most, 1e-9)
    start, size = 50 + min(value, 0) * scale, abs(value) * scale
    span = max((high - low) * scale, 0.4)
    return Markup(
        '<svg class="interval" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/>'
        f'<rect class="bar {"s0" if value >= 0 else "s1"}" x="{start:.2f}" width="{size:.2f}" height="10"/>'
        f'<rect class="span" x="{50 + low * scale:.2f}" y="3.5" width="{span:.2f}" height="3"/>'
        '<rect class="zero" x="49.8" width="0.4" height="10"/></svg>'
    )


def _polyline(frame: Frame, points: Sequence[tuple[float, float]], kind: str) -> str:
    path = " ".join(f"{frame.across(x):.1f},{frame.up(y):.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _dot(frame: Frame, point: tuple[float, float], title: str, index: int) -> str:
    x, y = frame.across(point[0]), frame.up(point[1])
    return f'<circle class="dot s{index % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{escape(title)}</title></circle>'


def _svg(title: str, parts: Sequence[str]) -> Markup:
    name = escape(title)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"><title>{name}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _legend(names: Sequence[str]) -> Markup:
    if len(names) < 2:
        return Markup()
    keys = "".join(f'<span><i class="key s{index % 4}"></i>{escape(name)}</span>' for index, name in enumerate(names))
    return Markup(f'<p class="legend" aria-hidden="true">{keys}</p>')
