"""What a plan comes to, in words: settings, cells, time, and the effects that can be detected."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..core.limits import as_text
from .study import CELL_BYTES

if TYPE_CHECKING:
    from .plan import Plan


def outline(plan: Plan, seconds_per_cell: float) -> str:
    """The text that a dry run prints: settings, number of cells, time, and the effects that can be detected."""
    from ..metrics.statistics import pairs_needed

    count, minutes = len(plan.captions), plan.cells * seconds_per_cell / 60
    seeds = f"{plan.seeds} seed{'' if plan.seeds == 1 else 's'}"
    cells = f"{len(plan.settings)} settings x {count} prompts x {seeds} = {plan.cells} cells"
    cost = "under a minute here" if minutes < 1 else f"about {minutes:.0f} minute{'s' * (round(minutes) > 1)} here"
    cost += f", at least {as_text(plan.cells * CELL_BYTES)} of disk"
    primary = plan.primary
    return "\n".join(
        [
            f"{plan.title or 'study'}: plan {plan.hash[:12]}",
            *(f"  {name}{_how_solved(plan, name)}" for name in plan.settings),
            *(f"{part} measures with {own.name}, SHA-256 {own.hash[:12]}" for part, own in plan.bench_weights.items()),
            f"{cells}, {cost}",
            f"primary: {primary.metric} of {primary.against!r} against {primary.baseline!r}; {detectable(count)} "
            f"(an effect of d_z = 0.3 needs {pairs_needed(0.3)} prompts)",
            *_in_points(plan),
        ]
    )


def _how_solved(plan: Plan, name: str) -> str:
    other = plan.settings[name].get("energy_of")
    if other is None:
        return ""
    return f": the scale that adds the energy of {other!r}; it is solved at the start of the run"


def _in_points(plan: Plan) -> list[str]:
    """The smallest difference that can be detected in points, where a prompt's value is yes or no."""
    metric, prompts = plan.metrics[plan.primary.metric], len(plan.captions)

    import numpy as np

    from ..metrics.metric import SHARE
    from ..metrics.statistics import detectable_difference
    from .words import round_points

    smallest = detectable_difference(np.zeros(prompts), share=True) if prompts > 1 else math.inf
    if metric.unit != SHARE or metric.kind != "alignment" or plan.seeds > 1 or not math.isfinite(smallest):
        return []
    return [
        f"in points: a difference in {metric.label} ({metric.name}) must be at least about {round_points(smallest)} "
        "to be detected with 80% power"
    ]


def detectable(prompts: int) -> str:
    """A sentence that says which effects a study with this number of prompts can detect."""
    from ..metrics.statistics import smallest_effect

    smallest = smallest_effect(prompts)
    if not math.isfinite(smallest):
        return f"with {prompts} prompts no effect can reach p = 0.05"
    return f"with {prompts} prompts, effects of d_z = {smallest:.2f} or more are detected with 80% power"
