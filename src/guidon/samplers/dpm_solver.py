"""DPM-Solver++ 2M (Lu et al. 2211.01095, algorithm 2): a second-order multistep solver of the diffusion ODE.

It works in continuous time: the discrete schedule is interpolated (``NoiseSchedule.between``). Time steps are uniform.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..core.broadcasting import at_least_single, per_frame
from ..core.errors import InputError, setting
from ..core.progress import OnStep
from ..diffusion import NoiseLevel, NoiseSchedule, Process, convert, split_prediction
from .contract import AfterStep, Denoiser, Noise, checked
from .frames import FrameMask


def _half_log_snr(level: NoiseLevel) -> float:
    """lambda = log(alpha / sigma)."""
    return math.log(level.alpha) - math.log(level.sigma)


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
) -> Tensor:
    """From noise x (B, C, ...) to x_0 in ``steps`` evaluations. Only a frame mask draws noise.

    Pass the full schedule, not a respaced one. The solver ends at the schedule's first level, next to the data.

    The first step is of first order. With fewer than ten steps, so is the last. The step at which a frame joins
    is of first order for that frame.

    Raises:
        InputError: fewer than 1 step, more than the schedule has, a prediction is not finite, or the frame mask does
            not fit.
    """
    if not 1 <= steps <= len(schedule):
        raise InputError(f"dpm-solver was asked for {setting('steps')} {steps}: give 1 to {len(schedule)}")
    predict = checked(denoiser)
    levels = [schedule.between(time) for time in np.linspace(1.0, 1.0 / len(schedule), steps + 1)]
    x = at_least_single(x)
    last: NoiseLevel | None = None
    previous: Tensor | None = None
    previous_h = 0.0
    for k in range(steps):
        level, after, before = levels[k], levels[k + 1], x
        if frames is not None:
            x, level = frames.begin(x, level, noise, last)
        # the clean sample that is predicted here
        output, _ = split_prediction(predict(x, level), x.shape[1])
        x_0 = convert(output, x, level, process.parameterization, "x0")
        x_0 = x_0.clamp(-1, 1) if process.clip_denoised else x_0
        # extrapolate it from the last two predictions
        h = _half_log_snr(after) - _half_log_snr(level)
        direction = x_0
        if previous is not None and (k < steps - 1 or steps >= 10):
            direction = x_0 + (h / (2 * previous_h)) * (x_0 - previous)
            if last is not None and last.noisy is not None:  # a frame that joins has no history
                direction = torch.where(per_frame(last.noisy), direction, x_0)
        # one step of the exponential integrator
        x = (after.sigma / level.sigma) * x - after.alpha * math.expm1(-h) * direction
        if frames is not None:
            x = frames.end(before, x, level)
        last, previous, previous_h = level, x_0, h
        if after_step:
            x = after_step(k, level, x)
        if on_step:
            on_step(k + 1, steps)
    predict.finish()
    return x
