"""Automatic per-channel scales: as little oversaturation and drift as the asked-for alignment allows.

Scales are chosen on tuning prompts and judged on others: what was fitted to noise does not survive that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from .. import world
from ..core.atomic import write_json
from ..core.errors import InputError
from ..core.settings import read_mapping
from ..guidance import ChannelScale
from ..metrics.statistics import Comparison, Interval, compare, mean_interval
from ..metrics.world import METRICS, measure
from ..pipeline import Pipeline
from ..studies.plan import TUNING_SEED
from .evaluate import BATCH, WORLD_SEED, of_the_world

JUDGED = ("joint", "oversaturation", "colour_drift")
FORGIVEN = 0.02  # of alignment, in the search: what is held fixed is so up to this
MARGIN = 0.05  # of alignment, in the verdict: its interval must exclude a larger loss
OnEvaluation = Callable[[int, int], None]
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tuned:
    """Scales per channel, and how they do beside the setting they came from on prompts that chose nothing.

    Attributes:
        scales, baseline: one scale per channel.
        evaluations: how many settings were sampled.
        held_out: by metric of ``JUDGED``, the mean at the baseline, at the scales, and the paired comparison.
    """

    scales: tuple[float, ...]
    baseline: tuple[float, ...]
    evaluations: int
    held_out: dict[str, tuple[Interval, Interval, Comparison]]

    @property
    def verified(self) -> bool:
        """Less oversaturation or drift (p below 0.05), neither of them more, no loss of alignment over ``MARGIN``."""
        told = {name: found for name, (_, _, found) in self.held_out.items() if found.p < 0.05}
        better = [told[name].difference.value < 0 for name in JUDGED[1:] if name in told]
        joint = self.held_out["joint"][2].difference
        return bool(better) and all(better) and joint.low >= -MARGIN

    def __str__(self) -> str:
        options = f"--cfg-scale {','.join(f'{s:g}' for s in self.scales)}"
        before = ",".join(f"{s:g}" for s in self.baseline)
        lines = [f"{options}   (from {before}, {self.evaluations} settings tried)", "on held-out prompts:"]
        for name, (a, b, found) in self.held_out.items():
            lines.append(f"  {name}: {a} to {b}, difference {found.difference}, p = {found.p:.2g}")
        lines.append(
            f"verified: cleaner, and no loss of alignment over {100 * MARGIN:g} points" if self.verified
            else "not verified: held-out prompts do not show it to be better; keep the setting it came from"
        )  # fmt: skip
        return "\n".join(lines)


def tune(
    pipe: Pipeline,
    cfg_scale: float | Sequence[float],
    cfg_channels: Any = "all",
    *,
    prompts: int = 24,
    held_out: int = 48,
    evaluations: int = 60,
    journal: Path | None = None,
    on_evaluation: OnEvaluation | None = None,
    **choices: Any,
) -> Tuned:
    """Search by Nelder and Mead (1965) from a setting, every scale between 1 and twice as much guidance as its largest.

    What is minimised is oversaturation, mean |chroma - 1|, plus colour drift, each over its value at the setting;
    alignment (``joint``) may not fall below the setting's.

    Args:
        prompts, held_out: how many captions of the world choose, and how many others judge.
        evaluations: how many settings are sampled at most.
        journal: a file of what was measured; a search that was cut off goes on from it.
        choices: of ``Generation``: steps, sampler, seed.

    Raises:
        InputError: the model is not of the world, or the setting guides nothing.
    """
    if not of_the_world(pipe):
        raise InputError(f"{pipe.preset.name} does not make the world's videos: alignment cannot be measured")
    start = ChannelScale.parse(cfg_scale, cfg_channels, channels=pipe.channels)
    if max(start.scales) <= 1:
        raise InputError(f"scale {max(start.scales):g} guides nothing to tune: give a --cfg-scale above 1")
    if evaluations < pipe.channels + 2:
        raise InputError(
            f"{evaluations} evaluations cannot tune {pipe.channels} scales: give {pipe.channels + 2} or more"
        )
    captions = [world.clip("L0", TUNING_SEED, index).caption for index in range(prompts)]
    choices["seed_per_prompt"] = True
    settings = pipe.plan(captions, cfg_scale=list(start.scales), **choices)
    memory = _Journal(journal, settings.model_dump(mode="json") | {"weights": pipe.hashes})

    def values(scales: Sequence[float]) -> Values:
        rounded = tuple(round(float(s), 3) for s in scales)
        if (known := memory.get(rounded)) is None:
            known = memory.put(rounded, _measured(pipe, captions, rounded, choices))
        if on_evaluation:
            on_evaluation(min(len(memory.known), evaluations), evaluations)
        return known

    first = values(start.scales)
    floor = first["joint"].mean() - FORGIVEN

    def objective(scales: np.ndarray) -> float:
        found = values(scales.tolist())
        cost = sum(np.nanmean(found[name]) / max(float(np.nanmean(first[name])), 1e-9) for name in JUDGED[1:])
        return float(cost) + 50 * max(0.0, floor - float(found["joint"].mean()))

    most = 1 + 2 * (max(start.scales) - 1)
    centre = np.clip(start.scales, 1, most)
    step = 0.4 * (max(start.scales) - 1)
    steps = np.diag(np.where(centre > 1 + step, -step, step))
    simplex = np.stack([centre, *(centre + steps)])
    best = optimize.minimize(
        objective,
        centre,
        method="Nelder-Mead",
        bounds=[(1, most)] * pipe.channels,
        options={"initial_simplex": simplex, "maxfev": evaluations - 1, "xatol": 0.02 * step, "fatol": 1e-3},
    )
    scales = tuple(round(float(s), 3) for s in best.x)
    judges = [world.clip("L0", WORLD_SEED, index).caption for index in range(held_out)]
    before, after = (_measured(pipe, judges, s, choices) for s in (start.scales, scales))
    better = {name: METRICS[name].better if name in METRICS else "lower" for name in JUDGED}
    judged = {
        name: (
            mean_interval(before[name]),
            mean_interval(after[name]),
            compare(before[name], after[name], better=better[name]),
        )
        for name in JUDGED
    }
    return Tuned(scales, start.scales, len(memory.known), judged)


def _measured(pipe: Pipeline, captions: Sequence[str], scales: Sequence[float], choices: dict[str, Any]) -> Values:
    """``JUDGED`` of one clip a caption, (P,) each."""
    plan = pipe.plan(captions, cfg_scale=list(scales), **choices)
    frames = np.stack([video.frames for video in pipe.generate(plan, batch_size=BATCH)])
    found = measure(frames, [world.read_caption(caption) for caption in captions])
    return {name: found[name] for name in ("joint", "colour_drift")} | {"oversaturation": np.abs(found["chroma"] - 1)}


class _Journal:
    """What was measured, by scales, in memory and in a file that belongs to one search."""

    def __init__(self, path: Path | None, search: dict[str, Any]) -> None:
        self.path, self.search = path, json.loads(json.dumps(search))
        self.known: dict[tuple[float, ...], Values] = {}
        if path is None or not path.exists():
            return
        stored = read_mapping(path)
        if stored.get("search") != self.search:
            raise InputError(f"{path} is of another search: choose another --out")
        for row in stored["measured"]:
            self.known[tuple(row["scales"])] = {k: np.array(v, float) for k, v in row["values"].items()}

    def get(self, scales: tuple[float, ...]) -> Values | None:
        return self.known.get(scales)

    def put(self, scales: tuple[float, ...], values: Values) -> Values:
        self.known[scales] = values
        if self.path is not None:
            rows = [
                {
                    "scales": s,
                    "values": {k: [None if math.isnan(x) else x for x in v.tolist()] for k, v in found.items()},
                }
                for s, found in self.known.items()
            ]
            write_json(self.path, {"search": self.search, "measured": rows})
        return values
