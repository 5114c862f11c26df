"""The report's plots as SVG without scripts. A point is a link to the setting that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from ...metrics.metric import Metric
from .tables import Row

WIDTH = 640


def forest(rows: Sequence[Row], slugs: Mapping[str, str]) -> Markup:
    """A forest plot: differences from the baseline in one metric with their intervals, one line for each setting."""
    shown = [row for row in rows if row.comparison is not None and math.isfinite(row.comparison.difference.value)]
    if not shown:
        return Markup("")
    metric, left, top, step = rows[0].metric, 210, 26, 22
    ends = [0.0]
    for row in shown:
        difference = row.comparison.difference if row.comparison else None
        ends += (
            [v for v in (difference.low, difference.value, difference.high) if math.isfinite(v)] if difference else []
        )
    at = _Axis(min(ends), max(ends), left, WIDTH - 16)
    height = top + step * len(shown) + 34
    parts = [_line(at(0), top - 8, at(0), height - 30, "zero")]
    for number, row in enumerate(shown):
        assert row.comparison is not None
        y, found = top + step * number + 6, row.comparison.difference
        kind = {"better": "better", "worse": "worse"}.get(row.verdict, "even")
        low, high = (v if math.isfinite(v) else found.value for v in (found.low, found.high))
        label = f"{row.setting}: {found} {metric.unit}, {row.verdict}"
        parts.append(
            Markup('<a href="#s-{}" data-setting="{}"><title>{}</title>{}{}{}</a>').format(
                slugs[row.setting],
                row.setting,
                label,
                _text(left - 10, y + 4, row.setting if len(row.setting) <= 32 else "…" + row.setting[-31:], "end"),
                _line(at(low), y, at(high), y, f"interval {kind}"),
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" class="{}"/>').format(at(found.value), y, kind),
            )
        )
    parts += _ticks(at, height - 26)
    return _svg(height, f"Difference in {metric.name} ({metric.unit}) from the baseline", parts)


def scatter(
    points: Mapping[str, tuple[float, float]],
    front: Mapping[str, float],
    axes: tuple[Metric, Metric],
    slugs: Mapping[str, str],
) -> Markup:
    """A scatter plot of settings by two metrics. More opaque points are more often on the Pareto front."""
    known = {name: xy for name, xy in points.items() if all(math.isfinite(v) for v in xy)}
    if not known:
        return Markup("")
    height, left = 360, 74
    xs, ys = zip(*known.values(), strict=True)
    across, up = _Axis(min(xs), max(xs), left, WIDTH - 150), _Axis(min(ys), max(ys), height - 52, 18)
    parts: list[Markup] = []
    taken: list[tuple[float, float]] = []
    for name, (x, y) in known.items():
        words = across(x) + 9, up(y) + 4
        while any(abs(words[0] - a) < 90 and abs(words[1] - b) < 12 for a, b in taken):
            words = words[0], words[1] - 12  # move it above a label that is there already
        taken.append(words)
        label = f"{name}: {axes[0].name} {x:.3g}, {axes[1].name} {y:.3g}; on the front: {100 * front[name]:.0f}%"
        parts.append(
            Markup('<a href="#s-{}" data-setting="{}"><title>{}</title>{}{}</a>').format(
                slugs[name],
                name,
                label,
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="6" class="point" fill-opacity="{:.2f}"/>').format(
                    across(x), up(y), 0.1 + 0.9 * front[name]
                ),
                _text(*words, name, "start", "small"),
            )
        )
    parts += _ticks(across, height - 46)
    for value in up.ticks():
        parts.append(_text(left - 8, up(value) + 4, f"{value:g}", "end", "small"))
        parts.append(_line(left - 4, up(value), left, up(value), "axis"))
    titles = [f"{m.name} ({m.unit})" + (f", {m.better} is better" if m.better else "") for m in axes]
    parts.append(_text((left + WIDTH - 150) / 2, height - 8, titles[0], "middle", "small"))
    parts.append(
        Markup(
            '<text x="14" y="{0}" transform="rotate(-90 14 {0})" text-anchor="middle" class="small">{1}</text>'
        ).format(height / 2, titles[1])
    )
    return _svg(height, f"{titles[0]} against {titles[1]}", parts)


def heat(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, digits: str = ".2f") -> Markup:
    """A heat map of values (rows, columns). Numbers are written into cells that are wide enough."""
    cell = min(64, (WIDTH - 130) / max(1, len(columns)))
    tall, left, top = 24, 118, 8
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    parts: list[Markup] = []
    for r, row in enumerate(rows):
        parts.append(_text(left - 6, top + tall * r + 16, row, "end", "small"))
        for c in range(len(columns)):
            value = float(values[r, c])
            if not math.isfinite(value):
                continue
            share = (value - low) / (high - low) if high > low else 0.5
            x, y = left + cell * c, top + tall * r
            parts.append(
                Markup(
                    '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" class="heat" fill-opacity="{:.3f}">'
                    "<title>{}, {}: {}</title></rect>"
                ).format(
                    x, y, cell - min(1, cell / 8), tall - 1, 0.06 + 0.94 * share, row, columns[c], format(value, digits)
                )
            )
            if cell >= 40:
                tone = "small on" if share > 0.55 else "small"
                parts.append(_text(x + cell / 2, y + 16, format(value, digits), "middle", tone))
    every = max(1, math.ceil(len(columns) * 34 / (cell * len(columns))))
    for c in range(0, len(columns), every):
        parts.append(_text(left + cell * (c + 0.5), top + tall * len(rows) + 14, columns[c], "middle", "small"))
    return _svg(top + tall * len(rows) + 20, title, parts)


class _Axis:
    """A linear axis with a margin: maps values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step) + 1)]


def _ticks(at: _Axis, y: float) -> list[Markup]:
    parts = [_line(at.start, y - 4, at.end, y - 4, "axis")]
    return parts + [_text(at(value), y + 10, f"{value:g}", "middle", "small") for value in at.ticks()]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _text(x: float, y: float, words: str, anchor: str, kind: str = "label") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, words)


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("").join(escape(part) for part in parts)
    )
