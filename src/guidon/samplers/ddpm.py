"""Ancestral sampling (Ho et al. 2020, algorithm 2), with whatever variance the process has."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion import NoiseSchedule, Process, ScheduleTables, p_mean_variance
from .contract import Denoiser, Noise, OnStep


def ddpm_step(
    prediction: Tensor, x: Tensor, step: int | Tensor, noise: Tensor, tables: ScheduleTables, process: Process
) -> tuple[Tensor, Tensor]:
    """x_{t-1} and the predicted x_0; step 0 adds no noise."""
    p = p_mean_variance(prediction, x, step, tables, process)
    if isinstance(step, int):
        return (p.mean if step == 0 else p.mean + torch.exp(0.5 * p.log_variance) * noise), p.x_0
    inner = (step != 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return p.mean + inner * torch.exp(0.5 * p.log_variance) * noise, p.x_0


def sample_ddpm(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
) -> Tensor:
    """From noise x (B, C, ...) to x_0, through every step of the schedule; noise is drawn at each, the last too."""
    tables, total = schedule.tables(x.device), len(schedule)
    for step in reversed(range(total)):
        x, _ = ddpm_step(denoiser(x, step), x, step, noise(x), tables, process)
        if on_step:
            on_step(total - step, total, x)
    return x
