"""Automatic guidance scales, one per channel: less oversaturation and drift at the same alignment with the prompt.

The bench's goal says what is lowered and what is kept. Scales are chosen on tuning prompts and verified on other
prompts, so that a choice that only fits chance is not accepted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.atomic import write_json
from ..core.errors import InputError, setting
from ..core.extras import Later
from ..core.hashing import hash_settings
from ..core.progress import OnStep
from ..core.reading import reading
from ..core.settings import read_mapping
from ..guidance import CfgChannels, ChannelScale, guides_nothing
from ..metrics.bench import find_bench
from ..metrics.metric import EVALUATION_SEED, FORGIVEN, MARGIN, SHARE, TUNING_SEED, Bench, Goal, Values
from ..metrics.statistics import Comparison, Interval, change_interval, compare, mean_interval
from ..request import Choices

if TYPE_CHECKING:
    from ..pipeline.contract import ModelPipeline, ModelPlanner

optimize = Later("scipy.optimize", "tuning", "study")

PENALTY = 50 * FORGIVEN  # cost of a loss beyond what the goal forgives, for each time that it forgives


@dataclass(frozen=True)
class Judgement:
    """One quantity on held-out prompts, which had no part in the choice of scales."""

    before: Interval
    """Its mean at the setting that the search started from."""
    after: Interval
    """Its mean at the scales that were found."""
    comparison: Comparison


@dataclass(frozen=True)
class Tuned:
    """Scales per channel, and their comparison with the start setting on held-out prompts."""

    scales: tuple[float, ...]
    """One per latent channel."""
    baseline: tuple[float, ...]
    """The scales of the start setting, one per latent channel."""
    evaluations: int
    """How many settings were sampled."""
    keep: str
    """The metric that must not fall."""
    margin: float
    """The loss of it that held-out prompts must exclude."""
    held_out: dict[str, Judgement]
    """The kept metric, and then the quantities that were to be lowered."""

    @property
    def verified(self) -> bool:
        """A quantity fell significantly (p < 0.05), none rose so, and the kept metric lost at most ``margin``."""
        lowered = [found.comparison for name, found in self.held_out.items() if name != self.keep]
        significant = [found.difference.value < 0 for found in lowered if found.p < 0.05]
        kept = self.held_out[self.keep].comparison.difference
        return bool(significant) and all(significant) and kept.low >= -self.margin

    @property
    def cfg_scale(self) -> str:
        """The scales as text for the option cfg_scale."""
        return _text(self.scales)

    @property
    def verdict(self) -> str:
        """The results on held-out prompts, as lines of text."""
        lines = [f"from cfg_scale {_text(self.baseline)}, {self.evaluations} settings tried", "on held-out prompts:"]
        for name, found in self.held_out.items():
            told = f"difference {found.comparison.difference}, p = {found.comparison.p:.2g}"
            lines.append(f"  {name}: {found.before} to {found.after}, {told}")
        lines.append(
            f"verified: cleaner, and no loss of {self.keep} over {self._most}" if self.verified
            else "not verified: held-out prompts do not show that it is better; keep the setting of the start"
        )  # fmt: skip
        return "\n".join(lines)

    @property
    def _most(self) -> str:
        """The margin in words: a share's is in points."""
        return f"{100 * self.margin:g} points" if self.margin == MARGIN else f"{self.margin:g}"

    def __str__(self) -> str:
        return f"cfg_scale {self.cfg_scale}\n{self.verdict}"


def _text(scales: Sequence[float]) -> str:
    return ",".join(f"{scale:g}" for scale in scales)


def goal_of(bench: Bench) -> Goal:
    """What tuning aims at on a bench.

    Raises:
        InputError: the bench does not say it.
    """
    if bench.goal is None:
        raise InputError(
            f"the bench {bench.name!r} does not say what good scales are, because nothing in it tells how well a clip "
            f"fits its prompt: give {setting('clip')}, the weights of a CLIP, or choose scales by hand"
        )
    return bench.goal


def check_tuning(
    planner: ModelPlanner,
    cfg_scale: float | Sequence[float],
    cfg_channels: CfgChannels,
    *,
    evaluations: int,
    choices: Choices,
    bench: Bench | None = None,
    prompts: Sequence[str] = (),
) -> tuple[Goal, ChannelScale]:
    """The goal and the start of a search. It needs neither the model's weights nor torch.

    Args:
        planner: that of the model.
        cfg_scale, cfg_channels: the start setting.
        evaluations: the largest number of settings to sample.
        choices: what all settings share.
        bench: what measures; None for the model's own.
        prompts: those of the user, for a bench without captions of its own.

    Raises:
        InputError: there are no prompts or no goal, a choice is not valid, or the start guides nothing.
    """
    bench = bench or find_bench(planner.bench)
    goal = goal_of(bench)
    captions = prompts or bench.captions(None, TUNING_SEED, 1)
    planner.check_prompts(captions, follow=bool(prompts))
    start = ChannelScale.parse(cfg_scale, cfg_channels, channels=planner.channels)
    if max(start.scales) <= 1:
        raise guides_nothing(start, "tune")
    if evaluations < planner.channels + 2:
        raise InputError(
            f"{setting('evaluations')} {evaluations} cannot tune {planner.channels} scales: give at least "
            f"{planner.channels + 2}"
        )
    planner.complete(captions, **_with(choices, start.scales))
    return goal, start


def split_prompts(prompts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts of a user's: the first, third, and so on choose scales, the others verify them.

    Raises:
        InputError: there are fewer than four, or one is given twice.
    """
    if len(prompts) < 4:
        raise InputError(f"{len(prompts)} prompts cannot choose scales and verify them: give at least 4")
    if (twice := next((text for text in prompts if prompts.count(text) > 1), None)) is not None:
        raise InputError(f"the prompt {twice!r} is given twice: what verifies must not have chosen")
    return tuple(prompts[::2]), tuple(prompts[1::2])


def tune(
    pipe: ModelPipeline,
    cfg_scale: float | Sequence[float],
    cfg_channels: CfgChannels = "all",
    *,
    prompts: int | Sequence[str] = 24,
    held_out: int | Sequence[str] = 60,
    bench: Bench | None = None,
    evaluations: int = 60,
    journal: Path | None = None,
    on_evaluation: OnStep | None = None,
    **shared: Any,
) -> Tuned:
    """Search for scales from a start setting, by the simplex method of Nelder and Mead (1965).

    The search minimises the sum of the goal's quantities, each divided by its value at the start. A fall of the kept
    metric by more than ``Goal.forgiven`` is penalised. Scales stay in [1, 1 + 2 (s - 1)], where s is the largest scale
    of the start.

    Args:
        pipe: the model.
        cfg_scale, cfg_channels: the start setting.
        prompts: the prompts on which scales are chosen; or how many captions of the bench.
        held_out: the other prompts on which they are verified; or how many captions of the bench.
        bench: what measures (``guidon.metrics.bench.open_bench``); None for the model's own.
        evaluations: the largest number of settings to sample.
        journal: a file that stores all measurements; an interrupted search resumes from it.
        on_evaluation: called as ``on_evaluation(done, total)`` after every setting.
        shared: choices of all settings, such as ``seed``, ``steps`` and ``fast``; None for the model's own.

    Raises:
        InputError: the bench has no captions or no goal, the start guides nothing, the kept metric is undefined for a
            prompt, or the journal is another search's.
    """
    choices = cast("Choices", shared | {"seed_per_prompt": True})
    bench = bench or find_bench(pipe.planner.bench)
    captions = bench.captions(None, TUNING_SEED, prompts) if isinstance(prompts, int) else tuple(prompts)
    judges = bench.captions(None, EVALUATION_SEED, held_out) if isinstance(held_out, int) else tuple(held_out)
    own = [text for given in (prompts, held_out) if not isinstance(given, int) for text in given]
    goal, start = check_tuning(
        pipe.planner, cfg_scale, cfg_channels, evaluations=evaluations, choices=choices, bench=bench, prompts=own
    )
    request = pipe.complete(captions, **_with(choices, start.scales))
    weights = pipe.hashes | (pipe.distilled_hashes if request.distilled else {})
    measured = {"weights": weights, "quantities": [goal.keep, *goal.lower]}
    if bench.weights:
        measured["bench_weights"] = {part: found.model_dump() for part, found in bench.weights.items()}
    memory = _Journal(journal, request.model_dump(mode="json") | measured)

    # Search on the tuning prompts.
    def values(scales: Sequence[float]) -> Values:
        rounded = tuple(round(float(s), 3) for s in scales)
        if (known := memory.get(rounded)) is None:
            known = memory.put(rounded, _measured(pipe, bench, captions, rounded, choices))
        if on_evaluation:
            on_evaluation(min(len(memory.known), evaluations), evaluations)
        return known

    first = values(start.scales)
    if not np.isfinite(first[goal.keep]).all():
        raise InputError(
            f"{goal.keep} is undefined for some of the prompts ({bench.metrics[goal.keep].undefined}), so that it "
            "cannot be held: give other prompts"
        )
    floor = first[goal.keep].mean() - goal.forgiven
    lowered = [name for name in goal.lower if np.isfinite(first[name]).any()]  # an image has no next frame

    def objective(scales: np.ndarray) -> float:
        found = values(scales.tolist())
        cost = sum(np.nanmean(found[name]) / max(float(np.nanmean(first[name])), 1e-9) for name in lowered)
        return float(cost) + PENALTY / goal.forgiven * max(0.0, floor - float(found[goal.keep].mean()))

    scales = _minimum(objective, start.scales, evaluations - 1)
    # Verify on the held-out prompts.
    before, after = (_measured(pipe, bench, judges, s, choices) for s in (start.scales, scales))
    judged = {name: _judged(bench, name, before[name], after[name]) for name in (goal.keep, *lowered)}
    return Tuned(scales, start.scales, len(memory.known), goal.keep, goal.margin, judged)


def _minimum(objective: Callable[[np.ndarray], float], start: Sequence[float], evaluations: int) -> tuple[float, ...]:
    """The best scales that the Nelder-Mead simplex finds from a start, rounded to three decimals."""
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
    metric = bench.metrics.get(name)
    compared = compare(before, after, better="lower" if metric is None else metric.better)
    difference = change_interval(after - before, share=metric is not None and metric.unit == SHARE)
    return Judgement(mean_interval(before), mean_interval(after), replace(compared, difference=difference))


def _with(choices: Choices, scales: Sequence[float]) -> Choices:
    return {**choices, "cfg_scale": tuple(scales)}


def _measured(
    pipe: ModelPipeline, bench: Bench, captions: Sequence[str], scales: Sequence[float], choices: Choices
) -> Values:
    """Sample one clip for each caption; return the values (P,) of the goal's quantities, by name."""
    request = pipe.complete(captions, **_with(choices, scales))
    found = bench.measure(
        np.stack([video.frames for video in pipe.generate(request, batch_size=pipe.planner.block)]), captions
    )
    goal = goal_of(bench)
    return {goal.keep: found[goal.keep]} | {name: of(found) for name, of in goal.lower.items()}


class _Journal:
    """Stores the measurements of one search by scales, in memory and in a file."""

    def __init__(self, path: Path | None, search: dict[str, Any]) -> None:
        self.path, self.search = path, json.loads(json.dumps(search))
        self.known: dict[tuple[float, ...], Values] = {}
        if path is None or not path.exists():
            return
        stored = read_mapping(path, "the measurements of a search")
        if stored.get("search") != self.search:
            raise InputError(f"{path} is of another search: choose another {setting('out')}")
        with reading(path, "the measurements of a search", "delete it to measure again"):
            kept = {"search": self.search, "measured": stored["measured"]}
            if set(stored) != set(kept) and stored["digest"] != hash_settings(kept):  # earlier versions wrote none
                raise ValueError("its content is not what was written")
            for row in stored["measured"]:
                values = {name: np.array(row["values"][name], float) for name in search["quantities"]}
                if any(column.shape != (len(search["prompts"]),) for column in values.values()):
                    raise ValueError("it holds no value for each prompt")
                self.known[tuple(float(scale) for scale in row["scales"])] = values

    def get(self, scales: tuple[float, ...]) -> Values | None:
        """The values measured at these scales; None if they were not measured yet."""
        return self.known.get(scales)

    def put(self, scales: tuple[float, ...], values: Values) -> Values:
        """Store the values measured at these scales, and return them."""
        self.known[scales] = values
        if self.path is not None:
            rows = [
                {
                    "scales": s,
                    "values": {k: [None if math.isnan(x) else x for x in v.tolist()] for k, v in found.items()},
                }
                for s, found in self.known.items()
            ]
            kept = {"search": self.search, "measured": json.loads(json.dumps(rows))}  # as it will be read back
            write_json(self.path, kept | {"digest": hash_settings(kept)})
        return values
