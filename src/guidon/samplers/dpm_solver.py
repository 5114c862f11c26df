"""DPM-Solver++ 2M (Lu et al. 2211.01095, algorithm 2): a second-order multistep solver of the diffusion ODE.

It works in continuous time: the discrete schedule's log signal is interpolated linearly, and time steps are uniform.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ..core.errors import InputError
from ..diffusion import NoiseSchedule, Process, converted, split_prediction
from .contract import Denoiser, Noise, OnStep


class _ContinuousTime:
    """log alpha, sigma and lambda of a discrete schedule at any time in [1/N, 1]; step n of N is time (n + 1)/N."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.count = len(schedule)
        self.times = np.arange(1, self.count + 1) / self.count
        self.log_alphas = 0.5 * np.log(schedule.alphas_cumprod)
        self.timestep_map = schedule.timestep_map.astype(np.float64)

    def log_alpha(self, time: float) -> float:
        return float(np.interp(time, self.times, self.log_alphas))

    def timestep(self, time: float) -> float:
        """The original timestep that a network is told."""
        return float(np.interp(time * self.count - 1, np.arange(self.count), self.timestep_map))


def sample_dpm_solver(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
    steps: int = 20,
) -> Tensor:
    """From noise x (B, C, ...) to x_0 in ``steps`` evaluations; the schedule is the full one. Draws no noise.

    The first step is of first order, and so is the last of fewer than ten.
    """
    if not 1 <= steps <= len(schedule):
        raise InputError(f"dpm-solver was asked for {steps} steps: give 1 to {len(schedule)}")
    clock = _ContinuousTime(schedule)
    times = np.linspace(1.0, 1.0 / clock.count, steps + 1)

    def noise_level(time: float) -> tuple[float, float, float]:
        log_alpha = clock.log_alpha(time)
        sigma = math.sqrt(-math.expm1(2 * log_alpha))
        return math.exp(log_alpha), sigma, log_alpha - math.log(sigma)

    def predict(x: Tensor, time: float) -> Tensor:
        output, _ = split_prediction(denoiser.at(x, clock.timestep(time)), x.shape[1])
        x_0 = converted(output, x, noise_level(time)[0] ** 2, process.parameterization, "x0")
        return x_0.clamp(-1, 1) if process.clip_denoised else x_0

    previous: Tensor | None = None
    previous_h = 0.0
    for k in range(steps):
        x_0 = predict(x, times[k])
        _, sigma_s, lambda_s = noise_level(times[k])
        alpha_t, sigma_t, lambda_t = noise_level(times[k + 1])
        h = lambda_t - lambda_s
        direction = x_0
        if previous is not None and (k < steps - 1 or steps >= 10):
            direction = x_0 + (h / (2 * previous_h)) * (x_0 - previous)
        x = (sigma_t / sigma_s) * x - alpha_t * math.expm1(-h) * direction
        previous, previous_h = x_0, h
        if on_step:
            on_step(k + 1, steps, x)
    return x
