"""DDIM (Song et al. 2010.02502): deterministic at eta 0, as noisy as DDPM's posterior at eta 1; and its inversion."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import InputError
from ..diffusion import NoiseSchedule, Process, ScheduleTables, eps_from_x0, predicted_x0, split_prediction
from ..diffusion.posterior import at
from .contract import Denoiser, Noise, OnStep


def ddim_step(
    prediction: Tensor,
    x: Tensor,
    step: int | Tensor,
    noise: Tensor | None,
    tables: ScheduleTables,
    process: Process,
    eta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x_{t-1} (eq. 12) and the predicted x_0; step 0 adds no noise, and eta 0 needs none."""
    x_0 = predicted_x0(split_prediction(prediction, x.shape[1])[0], x, step, tables, process)
    eps = eps_from_x0(x, step, x_0, tables)
    signal, before = at(tables.alphas_cumprod, step, x), at(tables.alphas_cumprod_prev, step, x)
    sigma = eta * torch.sqrt((1 - before) / (1 - signal)) * torch.sqrt(1 - signal / before)  # eq. 16
    mean = x_0 * torch.sqrt(before) + torch.sqrt((1 - before - sigma**2).clamp_min(0)) * eps
    if eta == 0 or noise is None:
        return mean, x_0
    inner = float(step != 0) if isinstance(step, int) else (step != 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return mean + inner * sigma * noise, x_0


def ddim_reverse_step(
    prediction: Tensor, x: Tensor, step: int | Tensor, tables: ScheduleTables, process: Process
) -> tuple[Tensor, Tensor]:
    """x_{t+1} by the deterministic path run backwards, and the predicted x_0."""
    x_0 = predicted_x0(split_prediction(prediction, x.shape[1])[0], x, step, tables, process)
    eps = eps_from_x0(x, step, x_0, tables)
    after = at(tables.alphas_cumprod_next, step, x)
    return x_0 * torch.sqrt(after) + torch.sqrt(1 - after) * eps, x_0


def sample_ddim(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """From noise x (B, C, ...) to x_0, through every step of the schedule. At eta 0 no noise is drawn."""
    if not 0 <= eta <= 1:
        raise InputError(f"eta {eta:g} is outside [0, 1]: 0 is deterministic, 1 as noisy as ddpm")
    tables, total = schedule.tables(x.device), len(schedule)
    for step in reversed(range(total)):
        x, _ = ddim_step(denoiser(x, step), x, step, noise(x) if eta else None, tables, process, eta)
        if on_step:
            on_step(total - step, total, x)
    return x
