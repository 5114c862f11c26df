"""DPM-Solver++ for the diffusion SDE (Lu et al. 2211.01095, app. D): multistep, of second or third order.

Noise that is drawn at every step corrects the errors of the steps before, as in ddpm. Earlier predictions save steps,
as in DPM-Solver++. The third order is that of Crowson's k-diffusion, ``dpmpp_3m_sde``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..core.broadcasting import at_least_single
from ..core.progress import OnStep
from ..diffusion import NoiseLevel, NoiseSchedule, Process, Spacing
from ..diffusion.spacing import UNIFORM
from .contract import AfterStep, Denoiser, Noise, checked
from .dpm_solver import Past, half_log_snr, levels_of, predicted_data
from .frames import FrameMask
from .walk import walk


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

    The first steps, and those of a frame that joins, are of a lower order, until there are predictions before them. So
    are those where ``after_step`` changed the sample.
    Order 1 is ancestral sampling with the posterior's variance.

    Raises:
        InputError: fewer than 1 step, more than the schedule has, a prediction is not finite, or the frame mask or the
            spacing does not fit.
    """
    predict = checked(denoiser)
    levels = levels_of(schedule, steps, spacing, to_data=True)
    history: list[Past] = []  # of the steps before, the last one first

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
            x = x + after.alpha * _curvature(x_0, level, h, history, order) + (after.sigma * math.sqrt(share)) * drawn
        else:
            x = x_0
        history = [Past(level, x_0), *history[: max(order - 2, 0)]]
        return x

    def change(changed: Tensor) -> None:
        history[0] = replace(history[0], changed=changed)

    return walk(
        predict, levels[:-1], at_least_single(x), noise, step,
        on_step=on_step, after_step=after_step, frames=frames, on_change=change,
    )  # fmt: skip


def _curvature(x_0: Tensor, level: NoiseLevel, h: float, history: Sequence[Past], order: int) -> Tensor | float:
    """What the change of the predictions adds to a step of length h from a level."""
    if order == 1 or not history:
        return 0.0
    last, nothing = history[0], torch.zeros_like(x_0)
    last_h = half_log_snr(level) - half_log_snr(last.level)
    slope = (x_0 - last.x_0) * (h / last_h)
    if order == 2:
        return -0.5 * math.expm1(-2 * h) * last.known(slope, nothing)
    phi_2 = math.expm1(-2 * h) / (2 * h) + 1
    if len(history) < 2:
        return phi_2 * last.known(slope, nothing)
    earlier = history[1]
    earlier_h = half_log_snr(last.level) - half_log_snr(earlier.level)
    slope_before = (last.x_0 - earlier.x_0) * (h / earlier_h)
    r, r_before = last_h / h, earlier_h / h
    bend = (slope - slope_before) / (r + r_before)
    of_both = phi_2 * (slope + bend * r) - (phi_2 / (2 * h) - 0.5) * bend
    # where the sample went on from the last prediction alone, there is one before
    return last.known(earlier.known(of_both, phi_2 * slope), nothing)
