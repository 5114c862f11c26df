"""Ancestral sampling (Ho et al. 2020, algorithm 2), with the variance that ``Process`` names."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.broadcasting import at_least_single, per_sample
from ..core.progress import OnStep
from ..diffusion import (
    DiscreteLevel,
    NoiseSchedule,
    Process,
    learned_log_variance,
    p_mean_variance,
    predicted_x0,
    split_prediction,
)
from .contract import AfterStep, Denoiser, Noise, checked
from .frames import FrameMask


def ddpm_step(
    prediction: Tensor, x: Tensor, level: DiscreteLevel, noise: Tensor, process: Process
) -> tuple[Tensor, Tensor]:
    """x_{t-1} and the predicted x_0, at least in fp32; step 0 adds no noise."""
    x = at_least_single(x)
    p = p_mean_variance(prediction, x, level, process)
    if isinstance(level.step, int):
        return (p.mean if level.step == 0 else p.mean + torch.exp(0.5 * p.log_variance) * noise), p.x_0
    inner = per_sample((level.step != 0).to(x.dtype), x)
    return p.mean + inner * torch.exp(0.5 * p.log_variance) * noise, p.x_0


def ddpm_next(prediction: Tensor, x: Tensor, level: DiscreteLevel, noise: Tensor, process: Process) -> Tensor:
    """x_{t-1} of ``ddpm_step``, bit for bit. Intermediate results are overwritten, so it takes less time and memory."""
    output, interpolation = split_prediction(prediction, x.shape[1])
    alike = prediction.dtype == noise.dtype == x.dtype == at_least_single(x).dtype
    plain = isinstance(level.step, int) and not (prediction.requires_grad or x.requires_grad)
    if interpolation is None or not process.learns_variance or not alike or not plain:
        return ddpm_step(prediction, x, level, noise, process)[0]
    x_0 = predicted_x0(output, x, level, process)
    given = process.parameterization == "x0" and not process.clip_denoised  # x_0 is the prediction itself
    mean = x_0 * level.posterior_mean_coef1 if given else x_0.mul_(level.posterior_mean_coef1)
    mean.add_(level.posterior_mean_coef2 * x)
    if level.step == 0:
        return mean
    return mean.add_(learned_log_variance(interpolation, level, process).mul_(0.5).exp_().mul_(noise))


def sample_ddpm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
    frames: FrameMask | None = None,
) -> Tensor:
    """From noise x (B, C, ...) to x_0, through every level of the schedule. Noise is drawn at every step.

    Raises:
        InputError: a prediction is not finite, or the frame mask does not fit.
    """
    predict = checked(denoiser)
    for done, level in enumerate(schedule.levels, 1):
        before = x
        if frames is not None:
            x, level = frames.begin(x, level, noise)
        x = ddpm_next(predict(x, level), x, level, noise(x), process)
        if frames is not None:
            x = frames.end(before, x, level)
        if after_step:
            x = after_step(done - 1, level, x)
        if on_step:
            on_step(done, len(schedule))
    predict.finish()
    return x
