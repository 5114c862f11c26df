"""The report's plots as SVG without scripts.

Horizontal positions are per cent of the plot, vertical ones and text are in pixels. So a plot fills any width, and its
text has the same size on every screen. A point is a link to the setting that it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ...metrics.metric import Metric
from ...metrics.statistics import Interval
from ..words import change_unit, write_change, write_value

HEIGHT = 260  # px, of a scatter plot
NARROWEST = 240  # px, the narrowest scatter plot; labels that do not overlap in it do not in a wider one either
LETTER = 8.5  # px, the width of a letter of a label
LINE = 14  # px, the height of a label
EDGE = 7  # per cent of a plot at its sides, where the text of a tick would leave it
COLUMNS = 50  # the most columns of a heat map


@dataclass(frozen=True)
class Axis:
    """A linear axis with a margin: maps values to 0 ... 100."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], margin: float = 0.08) -> Axis:
        """An axis that shows all finite values, with a margin at both ends as a share of their range."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        room = margin * (high - low) or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room)

    def __call__(self, value: float) -> float:
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 4) -> list[float]:
        """About ``count`` round numbers."""
        rough = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step) + 1)]


def directions(metric: Metric) -> tuple[str, str]:
    """The words at the low and at the high end of a metric's axis."""
    if metric.better is None:
        return "← lower", "higher →"
    return ("← worse", "better →") if metric.better == "higher" else ("← better", "worse →")


def bar(difference: Interval, axis: Axis, verdict: str, label: str) -> Markup:
    """A difference from the baseline with its interval, as a line of a forest plot."""
    kind = verdict if verdict in ("better", "worse") else "even"
    low, high = (end if math.isfinite(end) else difference.value for end in (difference.low, difference.high))
    parts = [
        _line(axis(0), 0, axis(0), 20, "zero"),
        _line(axis(low), 10, axis(high), 10, f"interval {kind}"),
        _dot(axis(difference.value), 10, kind),
    ]
    return _svg(20, label, parts, "bar")


def ticks(axis: Axis, unit: str) -> Markup:
    """The axis under the lines of a forest plot."""
    parts = [_line(0, 1, 100, 1, "axis")]
    for value in axis.ticks():
        parts += _tick(axis(value), 1, write_change(value, unit))
    return _svg(20, f"axis, {change_unit(unit)}", parts, "ticks")


@dataclass(frozen=True)
class Point:
    """A setting in a scatter plot."""

    letter: str
    """Its short name."""
    slug: str
    """The name of its folder."""
    title: str
    """What a pointer that rests on it shows."""
    x: float
    y: float
    front: float
    """How often it is on the Pareto front, 0 to 1."""


def scatter(points: Sequence[Point], metrics: tuple[Metric, Metric]) -> Markup:
    """A scatter plot of settings by two metrics. A more opaque point is more often on the Pareto front."""
    known = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not known:
        return Markup("")
    across, up = Axis.over([point.x for point in known]), Axis.over([point.y for point in known], 0.16)
    places = [(across(point.x), HEIGHT * (1 - up(point.y) / 100)) for point in known]
    parts: list[Markup] = []
    # Axes: grid lines with their values.
    for value in up.ticks():
        y = HEIGHT * (1 - up(value) / 100)
        parts += [_line(0, y, 100, y, "axis"), _text(-1.5, y + 4, write_value(value, metrics[1].unit), "end")]
    for value in across.ticks():
        parts += _tick(across(value), HEIGHT, write_value(value, metrics[0].unit))
    # Points, and labels where there is room for them.
    for point, (x, y), at in zip(known, places, _labels(known, places), strict=True):
        shape = Markup('<circle cx="{:.2f}%" cy="{:.1f}" r="6" class="point" fill-opacity="{:.2f}"/>').format(
            x, y, 0.1 + 0.9 * point.front
        )
        label = [] if at is None else [_text(x, at + LINE / 2 - 3, point.letter, kind="letter")]
        if at is not None and abs(at - y) > 2 * LINE:
            label.insert(0, _line(x, y, x, at, "leader"))
        parts.append(
            Markup('<a href="#s-{}" data-slug="{}"><title>{}</title>{}{}</a>').format(
                point.slug, point.slug, point.title, Markup("").join(label), shape
            )
        )
    return _svg(HEIGHT + 22, f"{metrics[1].label} against {metrics[0].label}", parts, "scatter")


def _labels(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[float | None]:
    """The vertical middle of each point's label, above or below the point; None where there is no room.

    Boxes are kept apart at the narrowest width. Labels are centred on their points, so more width moves them further
    apart.
    """
    taken = [(NARROWEST * x / 100, y, 7.0, 7.0) for x, y in places]  # centre and half sizes of the circles
    found: list[float | None] = []
    for point, (x, y) in zip(points, places, strict=True):
        centre, half = NARROWEST * x / 100, LETTER * len(point.letter) / 2
        free = (
            at
            for distance in range(15, HEIGHT, LINE)
            for at in (y - distance, y + distance)
            if LINE / 2 <= at <= HEIGHT - LINE / 2
            and all(
                abs(centre - a) >= half + w or abs(at - b) >= LINE / 2 + h
                for a, b, w, h in taken
                if (a, b) != (centre, y)
            )
        )
        at = next(free, None)
        found.append(at)
        if at is not None:
            taken.append((centre, at, half, LINE / 2))
    return found


def heat(values: np.ndarray, highest: float, columns: Sequence[str], label: str) -> Markup:
    """One row of a heat map: values (columns,) from 0 to ``highest``, stronger where they are larger."""
    width = 100 / len(values)
    parts: list[Markup] = []
    for number, value in enumerate(values.tolist()):
        share = max(0.0, value / highest) if highest > 0 else 0.0
        parts.append(
            Markup(
                '<rect x="{:.3f}%" y="0" width="{:.3f}%" height="18" class="heat" fill-opacity="{:.3f}">'
                "<title>{}: {:.3g}</title></rect>"
            ).format(number * width, width, share, columns[number], value)
        )
    return _svg(18, label, parts, "heat")


def binned(values: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Values (rows, steps) and the names of the steps, averaged to at most ``COLUMNS`` columns."""
    groups = [list(map(int, g)) for g in np.array_split(np.arange(values.shape[1]), min(COLUMNS, values.shape[1]))]
    labels = [names[group[0]] if len(group) == 1 else f"{names[group[0]]} to {names[group[-1]]}" for group in groups]
    return np.stack([values[:, group].mean(1) for group in groups], axis=1), labels


def _tick(x: float, y: float, words: str) -> list[Markup]:
    """A tick of a horizontal axis with its text, which stays inside the plot."""
    anchor = "start" if x < EDGE else "end" if x > 100 - EDGE else "middle"
    return [_line(x, y, x, y + 4, "axis"), _text(x, y + 17, words, anchor)]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _dot(x: float, y: float, kind: str) -> Markup:
    return Markup('<circle cx="{:.2f}%" cy="{:.1f}" r="4" class="{}"/>').format(x, y, kind)


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "tick") -> Markup:
    return Markup('<text x="{:.2f}%" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, kind, words
    )


def _svg(height: float, label: str, parts: Sequence[Markup], kind: str) -> Markup:
    return Markup('<svg class="{}" height="{:.0f}" role="img" aria-label="{}">{}</svg>').format(
        kind, height, label, Markup("").join(parts)
    )
