"""The Gaussian algebra of diffusion as pure functions: forwards, backwards, and what a prediction says of the step.

x_t, x_0, eps and predictions are (B, C, ...) fp32. ``step`` indexes the schedule's tables: an int for the whole
batch, or a long tensor (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.errors import InputError
from .schedule import ScheduleTables

Step = int | Tensor
Parameterization = Literal["eps", "x0", "v"]
Variance = Literal["learned_range", "clamped_range", "fixed_large", "fixed_small"]


@dataclass(frozen=True)
class Process:
    """What a network's output means.

    Attributes:
        parameterization: the first C channels are the noise ("eps"), the clean sample ("x0"), or the velocity ("v",
            sqrt(alphas_cumprod) eps - sqrt(1 - alphas_cumprod) x_0; Salimans & Ho 2202.00512, sec. 4). Each is an
            affine function of any other at a given x_t, so guidance means the same in all of them.
        variance: of the reverse step; "learned_range" reads the last C of 2C channels as an interpolation
            between the two fixed choices (Nichol & Dhariwal 2021, eq. 15), which may leave their range, as in the
            originals; "clamped_range" keeps it inside. Near step 0 an "x0" network errs by more than the posterior
            varies, and the learned variance grows to cover its errors: sampling would add them as noise.
        clip_denoised: clamp predicted x_0 to [-1, 1]; for pixels, not for latents.
    """

    parameterization: Parameterization = "eps"
    variance: Variance = "learned_range"
    clip_denoised: bool = False

    def __post_init__(self) -> None:
        for name, valid in (("parameterization", get_args(Parameterization)), ("variance", get_args(Variance))):
            if getattr(self, name) not in valid:
                raise InputError(f"{name} {getattr(self, name)!r} does not exist; valid: {', '.join(valid)}")

    @classmethod
    def trained(cls, prediction: Parameterization) -> Process:
        """What Guidon's own networks of a prediction are trained and sampled with."""
        return cls(prediction, "clamped_range" if prediction == "x0" else "learned_range")


@dataclass(frozen=True)
class Posterior:
    """p(x_{t-1} | x_t): mean, variance and log variance broadcastable to x_t; and the x_0 it was derived from."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    x_0: Tensor


def at(table: Tensor, step: Step, like: Tensor) -> Tensor:
    """A table's entries, shaped to multiply ``like``: a scalar tensor, or (B, 1, ...)."""
    entry = table[step]
    return entry if entry.ndim == 0 else entry.view(-1, *[1] * (like.ndim - 1))


def q_sample(x_0: Tensor, step: Step, noise: Tensor, tables: ScheduleTables) -> Tensor:
    """x_t of a clean sample (Ho et al. 2020, eq. 4)."""
    return at(tables.sqrt_alphas_cumprod, step, x_0) * x_0 + at(tables.sqrt_one_minus_alphas_cumprod, step, x_0) * noise


def q_mean_variance(x_0: Tensor, step: Step, tables: ScheduleTables) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and log variance of q(x_t | x_0), broadcastable to x_0."""
    mean = at(tables.sqrt_alphas_cumprod, step, x_0) * x_0
    return mean, at(1 - tables.alphas_cumprod, step, x_0), at(tables.log_one_minus_alphas_cumprod, step, x_0)


def x0_from_eps(x_t: Tensor, step: Step, eps: Tensor, tables: ScheduleTables) -> Tensor:
    return (
        at(tables.sqrt_recip_alphas_cumprod, step, x_t) * x_t - at(tables.sqrt_recipm1_alphas_cumprod, step, x_t) * eps
    )


def x0_from_v(x_t: Tensor, step: Step, v: Tensor, tables: ScheduleTables) -> Tensor:
    return at(tables.sqrt_alphas_cumprod, step, x_t) * x_t - at(tables.sqrt_one_minus_alphas_cumprod, step, x_t) * v


def velocity(x_0: Tensor, step: Step, noise: Tensor, tables: ScheduleTables) -> Tensor:
    """What a "v" network is trained to predict."""
    return at(tables.sqrt_alphas_cumprod, step, x_0) * noise - at(tables.sqrt_one_minus_alphas_cumprod, step, x_0) * x_0


def eps_from_x0(x_t: Tensor, step: Step, x_0: Tensor, tables: ScheduleTables) -> Tensor:
    return (at(tables.sqrt_recip_alphas_cumprod, step, x_t) * x_t - x_0) / at(
        tables.sqrt_recipm1_alphas_cumprod, step, x_t
    )


def q_posterior(x_0: Tensor, x_t: Tensor, step: Step, tables: ScheduleTables) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eqs. 6 and 7)."""
    mean = at(tables.posterior_mean_coef1, step, x_t) * x_0 + at(tables.posterior_mean_coef2, step, x_t) * x_t
    return mean, at(tables.posterior_variance, step, x_t), at(tables.posterior_log_variance_clipped, step, x_t)


def converted(
    prediction: Tensor, x_t: Tensor, signal: float, given: Parameterization, wanted: Parameterization
) -> Tensor:
    """A prediction in another parameterisation; ``signal`` is alphas_cumprod at t, below 1 unless x_0 is wanted."""
    if given == wanted:
        return prediction
    a, n = math.sqrt(signal), math.sqrt(1 - signal)
    if given == "x0":
        x_0 = prediction
    else:
        x_0 = a * x_t - n * prediction if given == "v" else (x_t - n * prediction) / a
    if wanted == "x0":
        return x_0
    return (a * x_t - x_0) / n if wanted == "v" else (x_t - a * x_0) / n


def split_prediction(prediction: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The first C channels, and the variance interpolation when there are 2C."""
    if prediction.shape[1] == channels:
        return prediction, None
    if prediction.shape[1] == 2 * channels:
        return prediction[:, :channels], prediction[:, channels:]
    raise InputError(
        f"the network gave {prediction.shape[1]} channels for {channels} latent channels: "
        f"expected {channels} or {2 * channels}"
    )


def p_mean_variance(prediction: Tensor, x_t: Tensor, step: Step, tables: ScheduleTables, process: Process) -> Posterior:
    """The reverse step's distribution by a prediction (B, C or 2C, ...).

    Raises:
        InputError: the channels do not fit, or a learned variance was asked for and not predicted.
    """
    output, interpolation = split_prediction(prediction, x_t.shape[1])
    if process.variance in ("learned_range", "clamped_range"):
        if interpolation is None:
            raise InputError(
                f"variance {process.variance!r} needs {2 * x_t.shape[1]} channels, the network gave {x_t.shape[1]}: "
                "use 'fixed_small' or 'fixed_large'"
            )
        share = (interpolation + 1) / 2
        if process.variance == "clamped_range":
            share = share.clamp(0, 1)
        low, high = at(tables.posterior_log_variance_clipped, step, x_t), at(tables.log_betas, step, x_t)
        log_variance = share * high + (1 - share) * low  # Nichol & Dhariwal 2021, eq. 15
        variance = log_variance.exp()
    elif process.variance == "fixed_large":
        variance, log_variance = (
            at(t, step, x_t) for t in (tables.fixed_large_variance, tables.fixed_large_log_variance)
        )
    else:
        variance, log_variance = (
            at(t, step, x_t) for t in (tables.posterior_variance, tables.posterior_log_variance_clipped)
        )
    x_0 = predicted_x0(output, x_t, step, tables, process)
    mean, _, _ = q_posterior(x_0, x_t, step, tables)
    return Posterior(mean, variance, log_variance, x_0)


def predicted_x0(output: Tensor, x_t: Tensor, step: Step, tables: ScheduleTables, process: Process) -> Tensor:
    """The clean sample a network's first C channels stand for."""
    if process.parameterization == "x0":
        x_0 = output
    else:
        x_0 = (x0_from_v if process.parameterization == "v" else x0_from_eps)(x_t, step, output, tables)
    return x_0.clamp(-1, 1) if process.clip_denoised else x_0


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of diagonal Gaussians, elementwise, in nats."""
    ratio = log_variance1 - log_variance2
    # in this order: near zero the sum cancels, and the published bounds carry its rounding
    return 0.5 * (-1 - ratio + ratio.exp() + (mean1 - mean2).square() * torch.exp(-log_variance2))
