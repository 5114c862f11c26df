"""What the page of a study shows, except its clips: texts, tables and plots."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from ...core.errors import InputError
from ...metrics.bench import find_bench
from ...metrics.metric import SHARE, Metric
from ...metrics.statistics import by_prompt, pareto
from ..answer import Answer
from ..cells import Cell
from ..plan import Plan
from ..results import Results
from ..words import spell_channels, spell_settings, spell_timing, write_value
from . import figures
from .tables import Row

FILLED = 0.75  # the least share of a grid's fields that have a value
LEVELS = 8  # strengths of colour in a grid
SAID = ("cfg_scale", "energy_of", "cfg_channels", "rotation", "guidance", "timing", "adaptive", "reuse", "sampler",
        "steps", "spacing", "distilled", "eta", "negative_prompt", "dtype", "decode_dtype", "call")  # fmt: skip
"""The choices that are said in words, in order."""
OF_GUIDANCE = {
    "cfg_scale",
    "energy_of",
    "cfg_channels",
    "rotation",
    "guidance",
    "timing",
    "adaptive",
    "reuse",
    "negative_prompt",
}
"""The choices that act only where there is guidance."""


@dataclass(frozen=True)
class Setting:
    """A setting as the page names it."""

    name: str
    """Its name in the plan."""
    words: str
    """Its name with the channels in words."""
    letter: str
    """Its short name in plots."""
    slug: str
    """The name of its folder; every id of the page that is of this setting has it."""
    choices: str
    """What is chosen in it and not in every other setting."""


@dataclass(frozen=True)
class Forest:
    """The differences of one metric from the baseline."""

    metric: Metric
    rows: list[tuple[Row, Markup]]
    """The settings that differ on a prompt, with their bars."""
    equal: list[Row]
    """The settings that are equal on every prompt."""
    ticks: Markup
    ends: tuple[str, str]
    """The words at the ends of the axis."""


@dataclass(frozen=True)
class Front:
    """Two metrics of all settings against each other."""

    across: Metric
    up: Metric
    plot: Markup
    points: list[figures.Point]
    ends: tuple[tuple[str, str], tuple[str, str]] = field(init=False)
    """The words at the ends of both axes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", (figures.directions(self.across), figures.directions(self.up)))


@dataclass(frozen=True)
class Grid:
    """The primary metric over guided channels and guidance scale."""

    metric: Metric
    scales: list[str]
    rows: list[tuple[str, list[tuple[str, int]]]]
    """By channels in words: for each scale the value and the strength of its colour, 0 to ``LEVELS``."""


@dataclass(frozen=True)
class Energy:
    """||cond - uncond|| of a setting over channels and steps."""

    setting: str
    channels: list[tuple[str, Markup, str]]
    """For each channel its name, a row of the heat map, and its mean."""
    first: str
    """The timestep of the first step at which guidance acted."""
    last: str


def make_content(
    plan: Plan, found: Results, answered: Answer, rows: Sequence[Row], cells: Sequence[Cell]
) -> dict[str, Any]:
    """The variables of the page's template, except the clips."""
    bench = find_bench(plan.bench)
    names = [plan.primary.metric, *(name for name in bench.shown if name != plan.primary.metric)]
    settings = _settings(plan, cells)
    compared = {name: [row for row in rows if row.metric.name == name and row.pairing] for name in names}
    by_both = {(row.setting, row.metric.name): row for row in rows}
    differing = [name for name, own in compared.items() if any(row.differs for row in own)]
    manifest = cells[0].manifest()
    return {
        "plan": plan,
        "answer": answered,
        "primary": plan.metrics[plan.primary.metric],
        "metrics": [plan.metrics[name] for name in names],
        "settings": settings,
        "shared_choices": _shared_choices(plan),
        "comparisons": max((row.comparisons for row in rows), default=1),
        "rows": rows,
        "never_differs": any(row.primary and row.pairing and not row.differs for row in rows),
        "table": {s: [by_both[s, m] for m in names if (s, m) in by_both] for s in settings},
        "fps": manifest.fps,
        "frames": manifest.frames,
        "made_by": manifest.guidon,
        "forests": _forests([compared[name] for name in differing], settings),
        "equal": [plan.metrics[name] for name, own in compared.items() if own and name not in differing],
        "fronts": _fronts(plan, found, rows, settings),
        "grid": _grid(plan, rows),
        "energies": _energies(plan, cells, settings),
    }


def _letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    name = ""
    while number >= 0:
        number, rest = divmod(number, 26)
        name, number = string.ascii_uppercase[rest] + name, number - 1
    return name


def _settings(plan: Plan, cells: Sequence[Cell]) -> dict[str, Setting]:
    """Every setting by its name in the plan."""
    words = spell_settings(plan.settings)
    slugs = {cell.setting: cell.folder.parent.name for cell in cells}
    different = _different_choices(plan)
    return {
        name: Setting(name, words[name], _letter(number), slugs[name], _say_choices(own, different))
        for number, (name, own) in enumerate((name, plan.settings[name]) for name in plan.settings)
    }


def _different_choices(plan: Plan) -> set[str]:
    """The choices that are not the same in all settings."""
    keys = {key for own in plan.settings.values() for key in own}
    return {key for key in keys if len({json.dumps(own.get(key)) for own in plan.settings.values()}) > 1}


def _shared_choices(plan: Plan) -> dict[str, str]:
    """What all settings have in common, in words, by whom it is of. A setting without guidance has no choices of it."""
    guided = [own for own in plan.settings.values() if own.get("cfg_scale") != 1]
    own = guided[0] if guided else next(iter(plan.settings.values()))
    shared = own.keys() - _different_choices(plan)
    if len(guided) in (0, len(plan.settings)):
        parts = {"all": _say_choices(own, shared)}
    else:
        parts = {
            "all": _say_choices(own, shared - OF_GUIDANCE),
            "all guided settings": _say_choices(own, shared & OF_GUIDANCE),
        }
    return {whose: words for whose, words in parts.items() if words}


def _say_choices(own: Mapping[str, Any], keys: set[str]) -> str:
    """The choices of a setting that are in ``keys``, in words."""
    acting = keys - OF_GUIDANCE | {"cfg_scale"} & keys if own.get("cfg_scale") == 1 else keys
    said = [_say_choice(key, own[key]) for key in SAID if key in acting and own.get(key) is not None]
    return ", ".join(filter(None, said))


def _say_choice(key: str, value: Any) -> str:
    """One choice in words; empty where it is the usual one."""
    match key:
        case "cfg_scale":
            scales = value if isinstance(value, list) else [value]
            return "no guidance" if value == 1 else f"scale {' '.join(f'{scale:g}' for scale in scales)}"
        case "energy_of":
            return f"the scale that adds the energy of {value}"
        case "cfg_channels":
            return spell_channels(str(value))
        case "rotation":
            return f"channels rotated at random, seed {value}"
        case "guidance":
            return "" if value == "cfg" else f"rule {value}"
        case "timing":
            return spell_timing(str(value))
        case "steps":
            return f"{value} steps"
        case "spacing":
            return f"spaced {value}"
        case "adaptive":
            return f"guided until the branches agree to {value:g}"
        case "reuse":
            return f"the unconditional branch called once in {value} guided steps"
        case "distilled":
            return "drawn by the distilled network"
        case "decode_dtype":
            return f"decoded in {value}"
        case "eta":
            return f"eta {value:g}" if value else ""
        case "call":
            said = {name: given["file"] if isinstance(given, dict) and "file" in given else given
                    for name, given in value.items()}  # fmt: skip
            return ", ".join(f"{name.replace('_', ' ')} {given}" for name, given in said.items())
        case "dtype":
            return "" if value == "fp32" else str(value)
        case _:
            return f"{key.replace('_', ' ')} {value}"


def _forests(compared: Sequence[Sequence[Row]], settings: Mapping[str, Setting]) -> list[Forest]:
    """A forest plot for each metric. Shares of clips have one axis in common."""

    def ends(rows: Sequence[Row]) -> list[float]:
        found = [row.comparison.difference for row in rows if row.comparison]
        return [0.0, *itertools.chain.from_iterable((d.low, d.value, d.high) for d in found)]

    def of_clips(metric: Metric) -> bool:
        return metric.unit == SHARE and metric.kind == "alignment"

    common = figures.Axis.over([value for rows in compared if of_clips(rows[0].metric) for value in ends(rows)])
    forests = []
    for rows in compared:
        metric = rows[0].metric
        axis = common if of_clips(metric) else figures.Axis.over(ends(rows))
        bars = [
            (
                row,
                figures.bar(
                    row.comparison.difference, axis, row.verdict, f"{settings[row.setting].words}: {row.verdict}"
                ),
            )
            for row in rows
            if row.comparison and row.differs
        ]
        equal = [row for row in rows if row.comparison and not row.differs]
        forests.append(Forest(metric, bars, equal, figures.ticks(axis, metric.unit), figures.directions(metric)))
    return forests


def _fronts(plan: Plan, found: Results, rows: Sequence[Row], settings: Mapping[str, Setting]) -> list[Front]:
    """A scatter plot for each pair of metrics in the bench's ``fronts`` that both differ between settings."""
    fronts = []
    means = {(row.setting, row.metric.name): row.mean.value for row in rows}
    for pair in find_bench(plan.bench).fronts:
        up, across = (plan.metrics[name] for name in pair)
        if any(len({means[s, metric.name] for s in settings}) < 2 for metric in (across, up)):
            continue
        values = {s: (by_prompt(found[s][across.name]), by_prompt(found[s][up.name])) for s in settings}
        chance = pareto(values, (across.better or "higher", up.better or "lower"))
        points = []
        for name, own in settings.items():
            x, y = means[name, across.name], means[name, up.name]
            title = (
                f"{own.words}: {up.label} {write_value(y, up.unit)}, {across.label} {write_value(x, across.unit)}; "
                f"on the front in {100 * chance[name]:.0f}% of resamples"
            )
            points.append(figures.Point(own.letter, own.slug, title, x, y, chance[name]))
        fronts.append(Front(across, up, figures.scatter(points, (across, up)), points))
    return fronts


def _grid(plan: Plan, rows: Sequence[Row]) -> Grid | None:
    """The settings that differ only in channels and scale. None if the grid would be small, flat or mostly empty."""
    own = ("cfg_scale", "cfg_channels")
    chosen = {name: plan.choices(name) for name in plan.settings}
    plain = {name: s for name, s in chosen.items() if isinstance(s["cfg_scale"], int | float) and s["cfg_scale"] != 1}
    families: dict[str, dict[tuple[str, float], str]] = {}
    for name, choices in plain.items():
        rest = json.dumps({key: value for key, value in choices.items() if key not in own}, sort_keys=True)
        families.setdefault(rest, {})[choices["cfg_channels"], choices["cfg_scale"]] = name
    cells = max(families.values(), key=len, default={})
    channels, scales = list(dict.fromkeys(key[0] for key in cells)), sorted({key[1] for key in cells})
    if len(channels) < 2 or len(scales) < 2 or len(cells) < FILLED * len(channels) * len(scales):
        return None
    metric = plan.metrics[plan.primary.metric]
    means = {row.setting: row.mean.value for row in rows if row.metric.name == metric.name}
    values = {key: means[name] for key, name in cells.items()}
    known = [value for value in values.values() if np.isfinite(value)]
    if len(set(known)) < 2:
        return None
    low, span = min(known), max(known) - min(known)

    def field_of(key: tuple[str, float]) -> tuple[str, int]:
        value = values.get(key, np.nan)
        if not np.isfinite(value):
            return "", 0
        return write_value(value, metric.unit), round(LEVELS * (value - low) / span)

    fields = [(spell_channels(c), [field_of((c, scale)) for scale in scales]) for c in channels]
    return Grid(metric, [f"{scale:g}" for scale in scales], fields)


def _energies(plan: Plan, cells: Sequence[Cell], settings: Mapping[str, Setting]) -> list[Energy]:
    """By setting, the mean ||cond - uncond|| over channels and steps at which guidance acted; one scale of colour."""
    means: dict[str, tuple[np.ndarray, list[str]]] = {}
    for name, own in itertools.groupby(cells, key=lambda cell: cell.setting):
        ends_early = plan.settings[name].get("adaptive") is not None  # where the clips of a block agree
        timesteps, total, count = np.zeros(0), np.zeros((0, 0)), 0
        for cell in own:
            trace = cell.trace()
            if "difference" not in trace:
                break
            times, found = trace["timestep"], trace["difference"]
            if not count:
                timesteps, total = times, np.zeros_like(found)
            shared = min(len(times), len(timesteps))
            same = shared == max(len(times), len(timesteps)) or ends_early
            if not same or found.shape[1:] != total.shape[1:] or (times[:shared] != timesteps[:shared]).any():
                raise InputError(
                    f"{cell.folder / 'trace.npz'} has another shape than that of the setting's first clip: delete the "
                    "cell, and run `guidon study run` again"
                )
            if len(times) > shared:
                timesteps, total, found = times, found.copy(), total
            total[:shared] += found[:shared]  # a clip that is guided no more adds nothing
            count += 1
        if count and len(timesteps) > 1:
            values = (total / count).T  # (channels, steps)
            means[name] = figures.binned(values, [f"{t:.0f}" for t in timesteps])
    highest = max((float(values.max()) for values, _ in means.values()), default=0.0)
    return [
        Energy(
            settings[name].words,
            [
                (f"channel {c}", figures.heat(row, highest, steps, f"channel {c}"), f"{row.mean():.3g}")
                for c, row in enumerate(values)
            ],
            steps[0].split(" ")[0],
            steps[-1].split(" ")[-1],
        )
        for name, (values, steps) in means.items()
    ]
