"""The first stage of a study's run: solve the scales of settings that match another setting's energy (``energy_of``).

The energy that plain guidance adds to a prediction is E(s) = sum over steps and guided channels of
((s - 1) ||cond - uncond||)^2. A short run of each of the two settings on the plan's tuning prompts measures E. The
scale is then the solution of E(scale) = E of the other setting, with the approximation E(s) = (s - 1)^2 E(2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.progress import OnStep, part_of
from ..diffusion.spacing import Explicit, parse_spacing
from ..guidance import GuidanceTrace, added_energy
from ..pipeline.contract import ModelPipeline
from .cells import Scales, read_plan, write_scales
from .plan import ANY_SCALE, Plan, make_request

STEPS = 20  # denoising steps of the runs that measure energy


def solve_scales(
    plan: Plan, pipe: ModelPipeline, out: Path, *, on_step: OnStep | None = None, say: Callable[[str], None] = print
) -> Plan:
    """The plan of a results folder with all its scales. Missing scales are solved and written to the folder.

    Under ``torchrun`` every rank solves the scales. All ranks get the same numbers, because the plan decides them. The
    file is written atomically. If another rank has written it already, that file is used.

    Args:
        plan: the plan of the folder.
        pipe: the plan's model.
        out: the results folder.
        on_step: called as ``on_step(done, total)`` after every denoising step.
        say: called with a line for each scale.

    Raises:
        InputError: a setting adds no energy in the measured steps, or the folder cannot be written.
    """
    if not plan.unsolved:
        return plan
    solved, waiting = plan, plan.unsolved
    for number, name in enumerate(waiting):
        say(f"solving the scale of {name!r}")
        report = part_of(on_step, number, len(waiting))
        solved = solved.with_scales({name: _matching_scale(solved, pipe, name, report)})
    return keep_scales(plan, solved.scales, out)


def keep_scales(plan: Plan, scales: Mapping[str, float], out: Path) -> Plan:
    """The plan of a results folder with its solved scales, which are written unless another process has done it."""
    if not (out / "scales.json").exists():
        write_scales(Scales(plan=plan.hash, steps=STEPS, scales=dict(scales)), out)
    return read_plan(out)


def _matching_scale(plan: Plan, pipe: ModelPipeline, name: str, on_step: OnStep | None) -> float:
    """The scale, to three decimals, at which a setting adds the same energy as the setting in its energy_of."""
    other = plan.settings[name]["energy_of"]
    wanted = _energy(plan, pipe, plan.choices(other), part_of(on_step, 0, 2))
    at_two = _energy(plan, pipe, plan.with_scales({name: ANY_SCALE}).choices(name), part_of(on_step, 1, 2))
    if not (wanted and at_two):
        raise InputError(f"{name!r} matches the energy of {other!r}, but its timing guides none of {STEPS} steps")
    return round(1 + (ANY_SCALE - 1) * math.sqrt(wanted / at_two), 3)


def _energy(plan: Plan, pipe: ModelPipeline, choices: Mapping[str, Any], on_step: OnStep | None) -> float:
    """The energy that a setting adds, summed over one sample of each tuning prompt."""
    total, starts = 0.0, range(0, len(plan.tuning), plan.block)
    listed = isinstance(parse_spacing(choices.get("spacing") or "uniform"), Explicit)
    steps = {} if listed else {"steps": STEPS}  # timesteps that are listed stay as they are
    for number, first in enumerate(starts):
        prompts = plan.tuning[first : first + plan.block]
        request = make_request({**choices, **steps}, prompts, (0,), first, "energy_of")
        trace = GuidanceTrace()
        pipe.generate(request, batch_size=plan.block, trace=trace, on_step=part_of(on_step, number, len(starts)))
        total += added_energy(trace.as_arrays())
    return total
