"""Automatic guidance scales, one per channel: less oversaturation and drift at the same alignment with the prompt.

What is lowered and what is kept is the bench's goal. Scales are chosen on tuning prompts and verified on others, where
a choice that was fitted to chance does no better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.atomic import write_json
from ..core.errors import InputError, setting
from ..core.extras import require
from ..core.progress import OnStep
from ..core.settings import read_mapping
from ..guidance import CfgChannels, ChannelScale
from ..metrics.bench import find_bench
from ..metrics.metric import EVALUATION_SEED, TUNING_SEED, Bench, Goal, Values
from ..metrics.statistics import Comparison, Interval, compare, mean_interval
from ..pipeline import Pipeline
from ..request import Choices
from .evaluate import BATCH

optimize = require("scipy.optimize", "tuning", "study")

FORGIVEN = 0.02  # loss of the kept metric that the search allows
MARGIN = 0.05  # loss of the kept metric that the interval on held-out prompts must exclude
PENALTY = 50  # of each unit of loss beyond FORGIVEN


@dataclass(frozen=True)
class Judgement:
    """One quantity on prompts that chose nothing."""

    before: Interval
    """Its mean at the setting that the search started from."""
    after: Interval
    """Its mean at the scales that were found."""
    comparison: Comparison


@dataclass(frozen=True)
class Tuned:
    """Scales per channel, and how they do on held-out prompts beside the setting that they came from."""

    scales: tuple[float, ...]
    """One per latent channel."""
    baseline: tuple[float, ...]
    """Those of the start, one per latent channel."""
    evaluations: int
    """How many settings were sampled."""
    keep: str
    """The metric that must not fall."""
    held_out: dict[str, Judgement]
    """The kept metric, and then the quantities that were to be lowered."""

    @property
    def verified(self) -> bool:
        """A lowered quantity is lower (p below 0.05), none is higher, and the kept metric lost no more than MARGIN."""
        lowered = [found.comparison for name, found in self.held_out.items() if name != self.keep]
        significant = [found.difference.value < 0 for found in lowered if found.p < 0.05]
        kept = self.held_out[self.keep].comparison.difference
        return bool(significant) and all(significant) and kept.low >= -MARGIN

    @property
    def cfg_scale(self) -> str:
        """The scales as text, as cfg_scale takes them."""
        return _text(self.scales)

    @property
    def verdict(self) -> str:
        """What held-out prompts say about the scales, in lines."""
        lines = [f"from cfg_scale {_text(self.baseline)}, {self.evaluations} settings tried", "on held-out prompts:"]
        for name, found in self.held_out.items():
            told = f"difference {found.comparison.difference}, p = {found.comparison.p:.2g}"
            lines.append(f"  {name}: {found.before} to {found.after}, {told}")
        lines.append(
            f"verified: cleaner, and no loss of {self.keep} over {100 * MARGIN:g} points" if self.verified
            else "not verified: held-out prompts do not show that it is better; keep the setting of the start"
        )  # fmt: skip
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"cfg_scale {self.cfg_scale}\n{self.verdict}"


def _text(scales: Sequence[float]) -> str:
    return ",".join(f"{scale:g}" for scale in scales)


def tune(
    pipe: Pipeline,
    cfg_scale: float | Sequence[float],
    cfg_channels: CfgChannels = "all",
    *,
    prompts: int = 24,
    held_out: int = 48,
    evaluations: int = 60,
    journal: Path | None = None,
    on_evaluation: OnStep | None = None,
    seed: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    timing: str | None = None,
) -> Tuned:
    """Search by Nelder and Mead (1965) from a setting; every scale stays between 1 and twice the start's guidance.

    The search minimises the sum of the goal's quantities, each over its value at the start. The goal's kept metric may
    not fall below the start's.

    Args:
        pipe: a model of a bench that has captions and a goal.
        cfg_scale, cfg_channels: where to start.
        prompts: how many captions choose.
        held_out: how many other captions verify.
        evaluations: how many settings are sampled at most.
        journal: a file of what was measured; an interrupted search resumes from it.
        on_evaluation: called as ``on_evaluation(done, total)`` after every setting.
        seed, steps, sampler, timing: of all settings; None for the model's own.

    Raises:
        InputError: the bench has no captions or no goal, the start guides nothing, or the journal is another search's.
    """
    bench = find_bench(pipe.model.bench)
    captions = bench.captions(None, TUNING_SEED, prompts)
    judges = bench.captions(None, EVALUATION_SEED, held_out)
    goal = bench.goal
    if goal is None:
        raise InputError(f"the bench {bench.name!r} does not say what good scales are: choose them by hand")
    start = ChannelScale.parse(cfg_scale, cfg_channels, channels=pipe.channels)
    if max(start.scales) <= 1:
        raise InputError(f"scale {max(start.scales):g} guides nothing to tune: give a {setting('cfg_scale')} above 1")
    if evaluations < pipe.channels + 2:
        raise InputError(
            f"{evaluations} evaluations cannot tune {pipe.channels} scales: give {pipe.channels + 2} or more"
        )
    given = {"seed": seed, "steps": steps, "sampler": sampler, "timing": timing, "seed_per_prompt": True}
    choices = cast("Choices", given)
    request = pipe.plan(captions, **_with(choices, start.scales))
    memory = _Journal(journal, request.model_dump(mode="json") | {"weights": pipe.hashes})

    # The search
    def values(scales: Sequence[float]) -> Values:
        rounded = tuple(round(float(s), 3) for s in scales)
        if (known := memory.get(rounded)) is None:
            known = memory.put(rounded, _measured(pipe, goal, captions, rounded, choices))
        if on_evaluation:
            on_evaluation(min(len(memory.known), evaluations), evaluations)
        return known

    first = values(start.scales)
    floor = first[goal.keep].mean() - FORGIVEN

    def objective(scales: np.ndarray) -> float:
        found = values(scales.tolist())
        cost = sum(np.nanmean(found[name]) / max(float(np.nanmean(first[name])), 1e-9) for name in goal.lower)
        return float(cost) + PENALTY * max(0.0, floor - float(found[goal.keep].mean()))

    scales = _minimum(objective, start.scales, evaluations - 1)
    # The verdict of other prompts
    before, after = (_measured(pipe, goal, judges, s, choices) for s in (start.scales, scales))
    judged = {name: _judged(bench, name, before[name], after[name]) for name in (goal.keep, *goal.lower)}
    return Tuned(scales, start.scales, len(memory.known), goal.keep, judged)


def _minimum(objective: Callable[[np.ndarray], float], start: Sequence[float], evaluations: int) -> tuple[float, ...]:
    """The best scales that Nelder and Mead's simplex finds from a start, to three decimals."""
    largest = max(start)
    most = 1 + 2 * (largest - 1)
    centre = np.clip(start, 1, most)
    step = 0.4 * (largest - 1)
    steps = np.diag(np.where(centre > 1 + step, -step, step))
    simplex = np.stack([centre, *(centre + steps)])
    best = optimize.minimize(
        objective,
        centre,
        method="Nelder-Mead",
        bounds=[(1, most)] * len(start),
        options={"initial_simplex": simplex, "maxfev": evaluations, "xatol": 0.02 * step, "fatol": 1e-3},
    )
    return tuple(round(float(s), 3) for s in best.x)


def _judged(bench: Bench, name: str, before: np.ndarray, after: np.ndarray) -> Judgement:
    better = bench.metrics[name].better if name in bench.metrics else "lower"
    return Judgement(mean_interval(before), mean_interval(after), compare(before, after, better=better))


def _with(choices: Choices, scales: Sequence[float]) -> Choices:
    return {**choices, "cfg_scale": tuple(scales)}


def _measured(pipe: Pipeline, goal: Goal, captions: Sequence[str], scales: Sequence[float], choices: Choices) -> Values:
    """What the goal names, of one clip a caption: (P,) each."""
    request = pipe.plan(captions, **_with(choices, scales))
    frames = np.stack([video.frames for video in pipe.generate(request, batch_size=BATCH)])
    found = find_bench(pipe.model.bench).measure(frames, captions)
    return {goal.keep: found[goal.keep]} | {name: of(found) for name, of in goal.lower.items()}


class _Journal:
    """What was measured, by scales: in memory, and in a file that belongs to one search."""

    def __init__(self, path: Path | None, search: dict[str, Any]) -> None:
        self.path, self.search = path, json.loads(json.dumps(search))
        self.known: dict[tuple[float, ...], Values] = {}
        if path is None or not path.exists():
            return
        stored = read_mapping(path)
        if stored.get("search") != self.search:
            raise InputError(f"{path} is of another search: choose another {setting('out')}")
        for row in stored["measured"]:
            self.known[tuple(row["scales"])] = {k: np.array(v, float) for k, v in row["values"].items()}

    def get(self, scales: tuple[float, ...]) -> Values | None:
        """What was measured at some scales, or None."""
        return self.known.get(scales)

    def put(self, scales: tuple[float, ...], values: Values) -> Values:
        """Keep what was measured at some scales, and give it back."""
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
