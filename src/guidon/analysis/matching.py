"""Calibration: find the scale on one choice of channels that has the same effect as a given scale on another choice.

Both choices are sampled from the same noise, the second one at a grid of scales. The two are equivalent in a metric at
the scale at which the metric's mean over prompts equals that of the first choice. A bootstrap over prompts gives the
95% band of this scale.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.atomic import atomic_path
from ..core.errors import InputError, nearest, setting
from ..core.extras import require
from ..core.settings import validated
from ..guidance import parse_channels
from ..metrics.bench import find_bench
from ..metrics.metric import TUNING_SEED, Metric
from ..metrics.statistics import by_prompt
from ..pipeline.contract import ModelPlanner
from ..request import DIFFUSERS
from ..studies.cells import Cell, cells_of
from ..studies.plan import Plan
from ..studies.results import results
from ..studies.study import Arm, Contrast, Study, check_size

VIDEO, ENERGY = "video", "energy"
OWN = {
    VIDEO: "the frames are nearest, by RMS difference of pixels",
    ENERGY: "the prediction is moved as far: sum over steps of ((scale - 1) ||cond - uncond||)^2",
}  # quantities that can be matched besides the metrics of a bench
STEPS_OF_GRID = (1 / 3, 2 / 3, 5 / 6, 1, 7 / 6, 4 / 3, 5 / 3, 2, 8 / 3)  # multiples of the rule of thumb's s - 1
RESAMPLES = 2000  # bootstrap resamples of the prompts


@dataclass(frozen=True)
class Match:
    """The scale at which two choices are equivalent in one metric."""

    scale: float
    """The equivalent scale; NaN where no scale of the grid matches."""
    low: float
    """The lower end of its 95% band; -inf if the band extends beyond the grid. ``high`` is the upper end, or inf."""
    high: float
    level: float
    """The mean of the metric that is matched. For ``video``: the RMS distance at the nearest scale, in [0, 1]."""
    prompts: int
    """How many prompts have a value at every scale."""


@dataclass(frozen=True)
class Equivalent:
    """A match in one metric: ``match.scale`` on channels ``to`` is equivalent to ``cfg_scale`` on ``cfg_channels``."""

    metric: str
    cfg_scale: float
    cfg_channels: str
    to: str
    match: Match

    def __str__(self) -> str:
        found = self.match
        if math.isnan(found.scale):
            if found.prompts < 2:
                return f"{self.metric}: undefined"
            return f"{self.metric}: no scale of the grid gives {found.level:.3g}"
        if math.isinf(found.low) and math.isinf(found.high):
            return f"{self.metric}: any; no scale of the grid differs significantly"
        ends = [f"{end:.2f}" if math.isfinite(end) else "open" for end in (found.low, found.high)]
        return f"{self.metric}: {found.scale:.2f} [{ends[0]}, {ends[1]}]"


def thumb(scale: float, cfg_channels: str, to: str, channels: int) -> float:
    """The rule of thumb that keeps the sum of s - 1 over channels: 1 + n_from / n_to (scale - 1)."""
    counts = [len(parse_channels(choice, channels)) for choice in (cfg_channels, to)]
    return 1 + counts[0] / counts[1] * (scale - 1)


def matching_study(
    planner: ModelPlanner,
    model: str,
    scales: Sequence[float],
    cfg_channels: str,
    to: str,
    *,
    prompts: int | Sequence[str],
    block: int | None = None,
    parts: Mapping[str, Any] = {},
    **shared: Any,
) -> Study:
    """The study that calibration samples: each scale on ``cfg_channels``, and a grid of scales on ``to``.

    Args:
        planner: that of the model.
        model: its name, or its folder.
        scales: the scales to match, each above 1.
        cfg_channels: the channels that these scales guide.
        to: the channels for which equivalent scales are found.
        prompts: texts; or the number of captions of the bench, taken from those on which no study reports results.
        block: clips denoised together; None for the model's own.
        parts: of a diffusers pipeline, how it is loaded: ``dtype``, ``offload`` and ``call``.
        shared: choices of all settings (``studies.study.Arm``), such as ``steps``, ``sampler``, ``timing`` and
            ``fast``; None for the model's own.

    Raises:
        InputError: a scale guides nothing, both choices are the same, or the bench has no captions of its own.
    """
    chosen = [parse_channels(cfg_channels, planner.channels), parse_channels(to, planner.channels, "to")]
    if not all(chosen):
        raise InputError(
            f"{setting('to' if chosen[0] else 'cfg_channels')} none guides no channel, so there is nothing to match: "
            "choose some channels"
        )
    if chosen[0] == chosen[1]:
        raise InputError(
            f"{setting('to')} {to} is the same choice as {setting('cfg_channels')} {cfg_channels}: name another"
        )
    for scale in scales:
        if not math.isfinite(scale) or scale <= 1:
            raise InputError(f"{setting('cfg_scale')} {scale:g} guides nothing to match: give numbers above 1")
    bench = find_bench(planner.bench)
    count = prompts if isinstance(prompts, int) else len(prompts)
    check_size(len(set(scales)) * (2 + len(STEPS_OF_GRID)), count, 1)
    if isinstance(prompts, int):
        prompts = bench.captions(None, TUNING_SEED, prompts)
    if len(prompts) < 2:
        raise InputError(f"{len(prompts)} prompt gives no band: give at least 2")
    # The grid: scales around the rule of thumb, and the given scales themselves.
    near = [thumb(scale, cfg_channels, to, planner.channels) for scale in scales]
    grid = {round(1 + step * (scale - 1), 3) for scale in near for step in STEPS_OF_GRID}
    grid |= {round(scale, 3) for scale in scales}
    start, end = (f"from {min(scales):g}", f"to {max(grid):g}")
    arms = [Arm(name=f"from {s:g}", cfg_scale=s, cfg_channels=cfg_channels, **shared) for s in sorted(set(scales))]
    arms += [Arm(name=f"to {s:g}", cfg_scale=s, cfg_channels=to, **shared) for s in sorted(grid)]
    named: Any = model
    if model.startswith(DIFFUSERS):
        kept = {name: parts[name] for name in ("dtype", "offload") if name in parts}
        named = {"diffusers": model.removeprefix(DIFFUSERS)} | kept
    values = {
        "title": f"channels {cfg_channels} matched by {to}", "model": named, "prompts": tuple(prompts),
        "call": parts.get("call") or {}, "settings": tuple(arms), "block": block,
        "primary": Contrast(metric=bench.primary_for(planner.is_image), baseline=start, against=end),
    }  # fmt: skip
    return validated(Study, values, None)


def check_metrics(
    names: Sequence[str], available: Mapping[str, Metric], *, distilled: bool = False, is_image: bool = False
) -> None:
    """Refuse metrics that cannot be matched.

    Args:
        names: what to match.
        available: the metrics of the bench.
        distilled: whether clips are sampled with a distilled network.
        is_image: whether a clip has one frame.

    Raises:
        InputError: a metric does not exist, needs two branches where one runs, or several frames where there is one.
    """
    if distilled and ENERGY in names:
        raise InputError(
            f"{setting('metric')} {ENERGY} is of two branches, and a distilled network runs one: leave it out"
        )
    for name in names:
        if name in OWN:
            continue
        if name not in available:
            raise InputError(f"the metric {name!r} does not exist{nearest(name, [*OWN, *available])}")
        if is_image and available[name].kind == "temporal":
            fits = [*_own(distilled), *(other for other, metric in available.items() if metric.kind != "temporal")]
            raise InputError(
                f"{setting('metric')} {name} is of several frames, and a clip of this model has one: give "
                f"{', '.join(fits)}"
            )


def _own(distilled: bool) -> tuple[str, ...]:
    """What is matched besides the metrics of a bench; a distilled network has no second branch, and so no energy."""
    return tuple(name for name in OWN if not (distilled and name == ENERGY))


def equivalents(plan: Plan, out: Path, channels: int, metrics: Sequence[str] = ()) -> list[Equivalent]:
    """The matches of all metrics from the cells of a finished ``matching_study``, ordered by scale.

    Args:
        plan: the plan of the study.
        out: its results folder.
        channels: how many latent channels the model has.
        metrics: what to match; if empty, ``video``, ``energy`` where two branches run, and those of the bench's
            ``matched`` that a clip has.

    Raises:
        InputError: a metric does not exist or cannot be matched, or cells are missing.
    """
    # Means over seeds of every metric, and the energy: setting -> metric -> (P,).
    means = {name: {key: by_prompt(v) for key, v in found.items()} for name, found in results(plan, out).items()}
    cells: dict[str, list[Cell]] = {}
    for cell in cells_of(plan, out):
        cells.setdefault(cell.setting, []).append(cell)
    is_image = len(next(iter(cells.values()))[0].frames()) == 1
    metrics = metrics or (*_own(plan.distilled), *find_bench(plan.bench).matched_for(is_image))
    check_metrics(metrics, plan.metrics, distilled=plan.distilled, is_image=is_image)
    for name, own in cells.items():
        means[name][ENERGY] = np.array([_energy(cell) for cell in own])
    # The settings of the grid, on the channels ``to``.
    grid = [name for name in plan.settings if name.startswith("to ")]
    scales = np.array([plan.settings[name]["cfg_scale"] for name in grid])
    to = plan.settings[grid[0]]["cfg_channels"]
    # Match each given scale against the grid.
    found = []
    for name in (name for name in plan.settings if name not in grid):
        scale, chosen = plan.settings[name]["cfg_scale"], plan.settings[name]["cfg_channels"]
        near = thumb(scale, chosen, to, channels)
        for metric in metrics:
            if metric == VIDEO:
                match = nearest_scale(scales, np.stack([_distance(cells[name], cells[other]) for other in grid]))
            else:
                match = crossing_scale(scales, np.stack([means[k][metric] for k in grid]), means[name][metric], near)
            found.append(Equivalent(metric, scale, chosen, to, match))
    return found


def _energy(cell: Cell) -> float:
    """The energy that guidance added to the cell's predictions."""
    from ..guidance import added_energy

    trace = cell.trace()
    return added_energy(trace) if "difference" in trace else 0.0  # no step was guided


def _distance(own: Sequence[Cell], others: Sequence[Cell]) -> np.ndarray:
    """RMS distance (P,) of the pixels of P pairs of clips, in [0, 1]."""
    pairs = ((one.frames() / 255.0, other.frames() / 255.0) for one, other in zip(own, others, strict=True))
    return np.array([math.sqrt(np.mean((one - other) ** 2)) for one, other in pairs])


def _resamples(prompts: int) -> np.ndarray:
    """Bootstrap weights (R, P) of the prompts; each row sums to 1. The first row weights all prompts equally."""
    counts = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    return np.concatenate([np.ones((1, prompts)), counts]) / prompts


def crossing_scale(scales: np.ndarray, values: np.ndarray, reference: np.ndarray, near: float) -> Match:
    """The scale at which a metric's mean over prompts crosses the mean of a reference.

    Args:
        scales: (S,), increasing.
        values: (S, P), of each prompt at each scale. The mean is interpolated linearly between scales.
        reference: (P,), of each prompt.
        near: if there are several crossings, the one nearest to this scale is taken.

    Returns:
        The crossing. Its band holds the scales around it at which the 95% interval of the difference contains 0.
        Prompts with an undefined value are left out.
    """
    defined = np.isfinite(values).all(0) & np.isfinite(reference)
    count = int(defined.sum())
    if count < 2:
        return Match(math.nan, math.nan, math.nan, math.nan, count)
    # The difference from the reference on a fine grid: its mean, and its 95% bootstrap interval.
    level = float(reference[defined].mean())
    excess = _resamples(count) @ (values - reference)[:, defined].T  # (R, S)
    fine = np.unique(np.concatenate([scales, np.linspace(scales[0], scales[-1], 1000)]))
    mean = np.interp(fine, scales, excess[0])
    low, high = (np.interp(fine, scales, np.percentile(excess[1:], q, axis=0)) for q in (2.5, 97.5))
    # Find the crossings, and the scales at which the difference is significant.
    roots = np.flatnonzero((mean == 0) | (mean * np.append(mean[1:], mean[-1]) < 0))
    apart = np.flatnonzero((low > 0) | (high < 0))
    if not len(roots):
        if len(apart):
            return Match(math.nan, math.nan, math.nan, level, count)
        return Match(float(fine[np.abs(mean).argmin()]), -math.inf, math.inf, level, count)
    # On each side, the band ends at the nearest scale with a significant difference.
    root = roots[np.abs(fine[roots] - near).argmin()]
    below, above = apart[apart < root], apart[apart > root]
    return Match(
        float(fine[root]),
        float(fine[below[-1]]) if len(below) else -math.inf,
        float(fine[above[0]]) if len(above) else math.inf,
        level,
        count,
    )


def nearest_scale(scales: np.ndarray, distances: np.ndarray) -> Match:
    """The scale of the grid at which the mean squared distance is least.

    Distances saturate where samples become unrelated, so they are not interpolated between the scales of the grid. The
    band reaches from the grid scale below to the one above the 95% bootstrap interval of the choice. It is infinite
    beyond the ends of the grid.

    Args:
        scales: (S,), increasing.
        distances: (S, P), of each prompt at each scale.
    """
    means = _resamples(distances.shape[1]) @ (distances**2).T  # (R, S)
    chosen = means.argmin(1)
    low, high = np.percentile(chosen[1:], [2.5, 97.5])
    ends = np.concatenate([[-math.inf], scales, [math.inf]])
    return Match(
        float(scales[chosen[0]]),
        float(ends[math.floor(low)]),
        float(ends[math.ceil(high) + 2]),
        math.sqrt(float(means[0].min())),
        distances.shape[1],
    )


def write_matches(found: Sequence[Equivalent], channels: int, out: Path) -> list[Path]:
    """Write equivalence.csv, one row for each match, and equivalence.png, the curves with bands and rule of thumb."""
    table = out / "equivalence.csv"
    with atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        asked = ("metric", "cfg_scale", "cfg_channels", "to")
        writer.writerow([*asked, *Match.__dataclass_fields__, "rule_of_thumb"])
        for row in found:
            rule = thumb(row.cfg_scale, row.cfg_channels, row.to, channels)
            writer.writerow([*(getattr(row, name) for name in asked), *asdict(row.match).values(), rule])
    return [table, _draw(found, channels, out / "equivalence.png")]


def _draw(found: Sequence[Equivalent], channels: int, path: Path) -> Path:
    """Plot the equivalent scale over the scale, one line for each metric."""
    figure = require("matplotlib.figure", "drawing", "study").Figure(figsize=(5.6, 4.4), layout="constrained")
    axis = figure.add_subplot()
    first = found[0]
    ends = np.array([1.0, max(row.cfg_scale for row in found)])
    # Two simple guesses for comparison.
    rule = [thumb(s, first.cfg_channels, first.to, channels) for s in ends]
    axis.plot(ends, rule, "k--", linewidth=1, label="the same sum over channels")
    axis.plot(ends, ends, "k:", linewidth=1, label="the same scale")
    # The matches. Metrics are shifted a little along x so that their bars do not overlap.
    for number, metric in enumerate(dict.fromkeys(row.metric for row in found)):
        rows = [row for row in found if row.metric == metric and math.isfinite(row.match.scale)]
        rows = [row for row in rows if math.isfinite(row.match.low) or math.isfinite(row.match.high)]
        if not rows:
            continue
        x = np.array([row.cfg_scale for row in rows]) + 0.01 * number * (ends[1] - 1)
        y = np.array([row.match.scale for row in rows])
        band = np.array([[row.match.scale - row.match.low, row.match.high - row.match.scale] for row in rows]).T
        axis.errorbar(
            x, y, band.clip(0, 2 * ends[1]), fmt="o-", markersize=4, linewidth=1, capsize=2, label=metric,
            color=f"C{number}",
        )  # fmt: skip
    axis.set_ylim(1, 1 + 2.7 * (rule[1] - 1))
    axis.set(
        xlabel=f"scale on channels {first.cfg_channels}",
        ylabel=f"equivalent scale on channels {first.to}",
        title="Equivalent guidance, with 95% bands",
    )
    axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return path
