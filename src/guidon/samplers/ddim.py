"""DDIM (Song et al. 2010.02502): deterministic at eta 0, as noisy as DDPM's posterior at eta 1; and its inversion."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.broadcasting import at_least_single
from ..core.errors import InputError, setting
from ..core.progress import OnStep
from ..diffusion import DiscreteLevel, NoiseSchedule, Process, eps_from_x0, predicted_x0, split_prediction
from .contract import AfterStep, Denoiser, Noise, checked
from .frames import FrameMask
from .walk import walk


def ddim_step(
    prediction: Tensor,
    x: Tensor,
    level: DiscreteLevel,
    noise: Tensor | None,
    process: Process,
    eta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x_{t-1} (eq. 12) and the predicted x_0, at least in fp32. At step 0 sigma is 0; eta 0 needs no noise."""
    x = at_least_single(x)
    x_0 = predicted_x0(split_prediction(prediction, x.shape[1])[0], x, level, process)
    return ddim_towards(x_0, x, level, noise, eta), x_0


def ddim_towards(x_0: Tensor, x: Tensor, level: DiscreteLevel, noise: Tensor | None, eta: float) -> Tensor:
    """x_{t-1} (eq. 12) of a given x_0."""
    eps = eps_from_x0(x, level, x_0)
    signal, before = level.alphas_cumprod, level.alphas_cumprod_prev
    sigma = eta * torch.sqrt((1 - before) / (1 - signal)) * torch.sqrt(1 - signal / before)  # eq. 16
    mean = x_0 * torch.sqrt(before) + torch.sqrt((1 - before - sigma**2).clamp_min(0)) * eps
    if eta == 0 or noise is None:
        return mean
    return mean + sigma * noise


def ddim_reverse_step(prediction: Tensor, x: Tensor, level: DiscreteLevel, process: Process) -> tuple[Tensor, Tensor]:
    """x_{t+1} by the deterministic path run backwards, and the predicted x_0, at least in fp32."""
    x = at_least_single(x)
    x_0 = predicted_x0(split_prediction(prediction, x.shape[1])[0], x, level, process)
    return ddim_away(x_0, x, level), x_0


def ddim_away(x_0: Tensor, x: Tensor, level: DiscreteLevel) -> Tensor:
    """x_{t+1} (eq. 12 run backwards) of a given x_0."""
    after = level.alphas_cumprod_next
    return x_0 * torch.sqrt(after) + torch.sqrt(1 - after) * eps_from_x0(x, level, x_0)


def sample_ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
    frames: FrameMask | None = None,
    eta: float = 0.0,
) -> Tensor:
    """From noise x (B, C, ...) to x_0, through every level of the schedule. At eta 0 only a frame mask draws noise.

    Raises:
        InputError: eta is outside [0, 1], a prediction is not finite, or the frame mask does not fit.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"{setting('eta')} {eta:g} is outside [0, 1]: 0 is deterministic, 1 as noisy as ddpm")
    predict = checked(denoiser)

    def step(x: Tensor, level: DiscreteLevel, _: int) -> Tensor:
        return ddim_step(predict(x, level), x, level, noise(x) if eta else None, process, eta)[0]

    return walk(predict, schedule.levels, x, noise, step, on_step=on_step, after_step=after_step, frames=frames)
