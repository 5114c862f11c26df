"""Ancestral sampling (Ho et al. 2020, algorithm 2), with the variance that ``Process`` names."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

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
from .contract import AfterStep, Denoiser, DenoiserInParts, Noise, Parts, checked
from .frames import FrameMask
from .noise import SampleNoise
from .walk import walk


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


PART = 1 << 18
"""Numbers of a part: three pieces of memory of this size stay in the cache. Smaller latents are not divided."""


def ddpm_guided_next(
    denoiser: Denoiser,
    x: Tensor,
    level: DiscreteLevel,
    noise: Noise,
    process: Process,
    memory: list[Tensor] | None = None,
) -> Tensor:
    """Predict, and take a step of ancestral sampling: x_{t-1}, bit for bit that of ``ddpm_next``.

    Large latents on the CPU go part by part through guidance, reverse step and noise, so that each number comes from
    memory once. A run gives one list as ``memory`` to all its steps, which keeps the memory of parts: to get it from
    the system anew may take as long as the rest of a step.
    """
    parts = None
    if (
        hasattr(type(denoiser), "parts")  # its own: a wrapper may pass on the attributes of what it wraps
        and isinstance(level.step, int)
        and level.step > 0
        and level.noisy is None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) > 0
        and x.numel() >= 2 * PART
        and not torch.is_grad_enabled()
        and process.parameterization == "eps"
        and process.learns_variance
    ):
        parts = cast("DenoiserInParts", denoiser).parts(x, level)
    if parts is None:
        return ddpm_next(denoiser(x, level), x, level, noise(x), process)
    if parts.cond.shape[1] != 2 * x.shape[1]:
        guided = parts.whole()
        parts.check(float(guided.sum()), shown=False)
        return ddpm_next(guided, x, level, noise(x), process)
    return _in_parts(parts, x.contiguous(), level, noise, process, [] if memory is None else memory)


def _in_parts(
    parts: Parts, x: Tensor, level: DiscreteLevel, noise: Noise, process: Process, memory: list[Tensor]
) -> Tensor:
    """``ddpm_next`` part by part: the same bits, in fewer operations."""
    own = noise if isinstance(noise, SampleNoise) else None
    drawn = x if own is not None else noise(x)
    made, shares, rows = torch.empty_like(x), parts.cond[:, x.shape[1] :].flatten(1), x.flatten(1)
    length, total, clamped = rows.shape[1], 0.0, process.variance == "clamped_range"
    bounds = [*range(0, max(length - PART, 0) + 1, PART), length]  # the last part is of 1 to 2 times the size
    longest = min(length, 2 * PART)
    if not memory or len(memory[0]) < longest:
        memory[:] = (torch.empty(longest) for _ in range(3))
    first, second, chance = memory
    two = torch.full((), 2.0)
    of_x, of_eps = float(level.sqrt_recip_alphas_cumprod), float(level.sqrt_recipm1_alphas_cumprod)
    of_x_0, of_seen = float(level.posterior_mean_coef1), float(level.posterior_mean_coef2)
    # Half the log variance is (share high + (1 - share) low) / 2, with a share of (interpolation + 1) / 2. Here both
    # divisions by 2 are one of the factors by 4, which rounds nothing.
    low, high = float(level.posterior_log_variance_clipped) / 4, float(level.log_betas) / 4
    for row in range(len(x)):
        for start, stop in pairwise(bounds):
            size = stop - start
            a, b, z = first[:size], second[:size], chance[:size]
            seen, out = rows[row, start:stop], made[row].view(-1)[start:stop]
            # x_0 of the noise, in the originals' order
            torch.mul(parts.output(row, start, stop, a), of_eps, out=a)
            torch.mul(seen, of_x, out=out).sub_(a)
            if process.clip_denoised:
                total += float(out.sum())
                out.clamp_(-1, 1)
            # the mean
            out.mul_(of_x_0).add_(torch.mul(seen, of_seen, out=a))
            # the deviation (Nichol & Dhariwal 2021, eq. 15)
            torch.add(shares[row, start:stop], 1, out=b)
            if clamped:
                b.clamp_(0, 2)
            torch.sub(two, b, out=a).mul_(low).add_(b.mul_(high)).exp_()
            values = own.draw_part(row, z) if own is not None else drawn[row].reshape(-1)[start:stop]
            out.add_(a.mul_(values))
            total += float(out.sum())
    parts.check(total, shown=not (process.clip_denoised or clamped))
    return made


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
    predict, memory = checked(denoiser), list[Tensor]()

    def step(x: Tensor, level: DiscreteLevel, _: int) -> Tensor:
        return ddpm_guided_next(predict, x, level, noise, process, memory)

    return walk(predict, schedule.levels, x, noise, step, on_step=on_step, after_step=after_step, frames=frames)
