"""DPM-Solver++ for the diffusion SDE (Lu et al. 2211.01095, app. D): multistep, of second or third order.

Noise that is drawn at every step corrects the errors of the steps before, as in ddpm. Earlier predictions save steps,
as in DPM-Solver++. The third order is that of Crowson's k-diffusion, ``dpmpp_3m_sde``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..core.broadcasting import at_least_single, per_frame
from ..core.progress import OnStep
from ..diffusion import NoiseLevel, NoiseSchedule, Process, Spacing
from ..diffusion.spacing import UNIFORM
from .contract import AfterStep, Denoiser, Noise, checked
from .dpm_solver import half_log_snr, levels_of, predicted_data
from .frames import FrameMask
from .walk import walk

History = list[tuple[NoiseLevel, Tensor, float]]
"""Of the steps before, the last one first: the level, the clean sample that was predicted, and the step's length."""


def sample_dpm_solver_sde(
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
    order: Literal[1, 2, 3] = 2,
) -> Tensor:
    """From noise x (B, C, ...) to x_0 in ``steps`` evaluations. Noise is drawn at every step.

    Pass the full schedule, not a respaced one. The last step ends at the data, which is the clean sample that is
    predicted there. ``spacing`` places the steps.

    The first steps, and those of a frame that joins, are of a lower order, until there are predictions before them.
    Order 1 is ancestral sampling with the posterior's variance.

    Raises:
        InputError: fewer than 1 step, more than the schedule has, a prediction is not finite, or the frame mask or the
            spacing does not fit.
    """
    predict = checked(denoiser)
    levels = levels_of(schedule, steps, spacing, to_data=True)
    history: History = []

    def step(x: Tensor, level: NoiseLevel, k: int) -> Tensor:
        nonlocal history
        after = levels[k + 1]
        x_0 = predicted_data(predict(x, level), x, level, process)
        drawn = at_least_single(noise(x))
        # one step of the exponential integrator; at the data nothing is left of x and of noise
        h = half_log_snr(after) - half_log_snr(level)
        if after.sigma:
            share = -math.expm1(-2 * h)
            x = (after.sigma / level.sigma * math.exp(-h)) * x + after.alpha * share * x_0
            x = x + after.alpha * _curvature(x_0, h, history, order) + (after.sigma * math.sqrt(share)) * drawn
        else:
            x = x_0
        history = [(level, x_0, h), *history[: order - 2]] if order > 1 else [(level, x_0, h)]
        return x

    return walk(
        predict, levels[:-1], at_least_single(x), noise, step, on_step=on_step, after_step=after_step, frames=frames
    )


def _curvature(x_0: Tensor, h: float, history: History, order: int) -> Tensor | float:
    """What the change of the predictions adds to a step of length h."""
    if order == 1 or not history:
        return 0.0
    last, previous, previous_h = history[0]
    slope = (x_0 - previous) * (h / previous_h)
    if order == 2:
        return -0.5 * math.expm1(-2 * h) * _known(slope, last)
    phi_2 = math.expm1(-2 * h) / (2 * h) + 1
    if len(history) < 2:
        return phi_2 * _known(slope, last)
    earlier, first, first_h = history[1]
    slope_before = (previous - first) * (h / first_h)
    r, r_before = previous_h / h, first_h / h
    bend = (slope - slope_before) / (r + r_before)
    of_both = phi_2 * (slope + bend * r) - (phi_2 / (2 * h) - 0.5) * bend
    if earlier.noisy is not None:  # a frame that joined at the last step has one prediction before
        of_both = torch.where(per_frame(earlier.noisy), of_both, phi_2 * slope)
    return _known(of_both, last)


def _known(slope: Tensor, last: NoiseLevel) -> Tensor:
    """The slope where there was a prediction before; 0 in frames that join."""
    return slope if last.noisy is None else torch.where(per_frame(last.noisy), slope, torch.zeros_like(slope))
