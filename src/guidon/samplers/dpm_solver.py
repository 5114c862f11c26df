"""DPM-Solver++ 2M (Lu et al. 2211.01095, algorithm 2): a second-order multistep solver of the diffusion ODE.

It works in continuous time: the discrete schedule is interpolated (``NoiseSchedule.between``). Time steps are uniform
unless a spacing places them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core.broadcasting import at_least_single, per_frame
from ..core.errors import InputError, setting
from ..core.progress import OnStep
from ..diffusion import CLEAN, NoiseLevel, NoiseSchedule, Process, Spacing, convert, split_prediction
from ..diffusion.spacing import UNIFORM
from .contract import AfterStep, Denoiser, Noise, checked
from .frames import FrameMask
from .walk import walk


def half_log_snr(level: NoiseLevel) -> float:
    """lambda = log(alpha / sigma); infinite at the data."""
    return math.log(level.alpha) - math.log(level.sigma) if level.sigma else math.inf


def levels_of(schedule: NoiseSchedule, steps: int, spacing: Spacing, *, to_data: bool = False) -> list[NoiseLevel]:
    """The levels at which a solver of continuous time begins its steps, from noise on, and the level at which it ends.

    Args:
        schedule: the full schedule.
        steps: how many steps.
        spacing: where they lie.
        to_data: end at the data, and not at the schedule's first level, next to it.

    Raises:
        InputError: fewer than 1 step, more than the schedule has, or the spacing does not fit the schedule.
    """
    if not 1 <= steps <= len(schedule):
        raise InputError(f"a solver was asked for {setting('steps')} {steps}: give 1 to {len(schedule)}")
    uniform = [float(time) for time in np.linspace(1.0, 1.0 / len(schedule), steps + 1)]
    times = uniform if spacing == UNIFORM else schedule.times_spaced_by(steps, spacing)
    return [schedule.between(time) if time else CLEAN for time in (*times[:-1], 0.0 if to_data else times[-1])]


def predicted_data(prediction: Tensor, x: Tensor, level: NoiseLevel, process: Process) -> Tensor:
    """The clean sample (B, C, ...) by a prediction (B, C or 2C, ...) of x at a level."""
    output, _ = split_prediction(prediction, x.shape[1])
    x_0 = convert(output, x, level, process.parameterization, "x0")
    return x_0.clamp(-1, 1) if process.clip_denoised else x_0


@dataclass(frozen=True, eq=False)
class Past:
    """What a step of a multistep solver leaves to those after it."""

    level: NoiseLevel
    """Where the step began."""
    x_0: Tensor
    """The clean sample (B, C, ...) that was predicted there."""
    changed: Tensor | None = None
    """Where ``after_step`` changed the sample, bool (B, C, ...); None where nothing was called."""

    def known(self, higher: Tensor, lower: Tensor) -> Tensor:
        """The value of higher order, which uses this prediction; the lower one where the sample does not go on from it.

        It does not in frames that join, and where the sample was changed.
        """
        if self.level.noisy is not None:
            higher = torch.where(per_frame(self.level.noisy), higher, lower)
        return higher if self.changed is None else torch.where(self.changed, lower, higher)


def sample_dpm_solver(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
    frames: FrameMask | None = None,
    steps: int = 20,
    spacing: Spacing = UNIFORM,
) -> Tensor:
    """From noise x (B, C, ...) to x_0 in ``steps`` evaluations. Only a frame mask draws noise.

    Pass the full schedule, not a respaced one. The solver ends at the schedule's first level, next to the data; where
    the spacing lists timesteps to the last, at the data. ``spacing`` places the steps.

    The first step is of first order. With fewer than ten steps, so is the last. The step at which a frame joins
    is of first order for that frame, and the one after ``after_step`` changed the sample where it did.

    Raises:
        InputError: fewer than 1 step, more than the schedule has, a prediction is not finite, or the frame mask or the
            spacing does not fit.
    """
    predict = checked(denoiser)
    levels = levels_of(schedule, steps, spacing)
    last: Past | None = None

    def step(x: Tensor, level: NoiseLevel, k: int) -> Tensor:
        nonlocal last
        after = levels[k + 1]
        # the clean sample that is predicted here
        x_0 = predicted_data(predict(x, level), x, level, process)
        # extrapolate it from the last two predictions
        h = half_log_snr(after) - half_log_snr(level)
        direction = x_0
        if last is not None and (k < steps - 1 or steps >= 10) and after.sigma:
            last_h = half_log_snr(level) - half_log_snr(last.level)
            direction = last.known(x_0 + (h / (2 * last_h)) * (x_0 - last.x_0), x_0)
        last = Past(level, x_0)
        # one step of the exponential integrator
        return (after.sigma / level.sigma) * x - after.alpha * math.expm1(-h) * direction

    def change(changed: Tensor) -> None:
        nonlocal last
        last = None if last is None else replace(last, changed=changed)

    return walk(
        predict, levels[:-1], at_least_single(x), noise, step,
        on_step=on_step, after_step=after_step, frames=frames, on_change=change,
    )  # fmt: skip
