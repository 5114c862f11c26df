"""The Gaussian algebra of the discrete process as pure functions: the forward process, and its reverse step.

x_t, x_0, eps and predictions are (B, C, ...) fp32. ``level`` is one level for the whole batch, or one for every sample
(``NoiseSchedule.at``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.errors import InputError
from .level import DiscreteLevel, NoiseLevel
from .prediction import Parameterization, convert, split_prediction

Variance = Literal["learned_range", "clamped_range", "fixed_large", "fixed_small"]


@dataclass(frozen=True)
class Process:
    """What a network's output means."""

    parameterization: Parameterization = "eps"
    """What the first C channels stand for. Plain guidance gives the same in all of them, at a given x_t."""
    variance: Variance = "learned_range"
    """The variance of the reverse step. "learned_range" reads the last C of 2C channels as an interpolation between
    the two fixed choices (Nichol & Dhariwal 2021, eq. 15). The interpolation may leave the range, as in the originals;
    "clamped_range" keeps it inside. Near step 0 an "x0" network errs by more than the posterior varies: its learned
    variance grows to cover its errors, and sampling would add them as noise."""
    clip_denoised: bool = False
    """Clamp predicted x_0 to [-1, 1]: right for pixels, wrong for latents."""

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance."""
        return self.variance in ("learned_range", "clamped_range")

    def __post_init__(self) -> None:
        for name, valid in (("parameterization", get_args(Parameterization)), ("variance", get_args(Variance))):
            if getattr(self, name) not in valid:
                raise InputError(f"{name} {getattr(self, name)!r} does not exist; valid: {', '.join(valid)}")

    @classmethod
    def trained(cls, prediction: Parameterization) -> Process:
        """What Guidon's own networks of a parameterisation are trained and sampled with."""
        return cls(prediction, "clamped_range" if prediction == "x0" else "learned_range")


@dataclass(frozen=True)
class Posterior:
    """p(x_{t-1} | x_t)."""

    mean: Tensor
    variance: Tensor
    """Broadcastable to the mean."""
    log_variance: Tensor
    """Broadcastable to the mean."""
    x_0: Tensor
    """The clean sample that the distribution was derived from."""


def q_sample(x_0: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
    """x_t of a clean sample (Ho et al. 2020, eq. 4)."""
    return level.alpha * x_0 + level.sigma * noise


def q_mean_variance(x_0: Tensor, level: DiscreteLevel) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and log variance of q(x_t | x_0), broadcastable to x_0."""
    return level.alpha * x_0, 1 - level.alphas_cumprod, level.log_one_minus_alphas_cumprod


def x0_from_eps(x_t: Tensor, level: DiscreteLevel, eps: Tensor) -> Tensor:
    """The clean sample, in the originals' order of operations (their rounding differs from ``convert``'s)."""
    return level.sqrt_recip_alphas_cumprod * x_t - level.sqrt_recipm1_alphas_cumprod * eps


def eps_from_x0(x_t: Tensor, level: DiscreteLevel, x_0: Tensor) -> Tensor:
    """The noise, in the originals' order of operations."""
    return (level.sqrt_recip_alphas_cumprod * x_t - x_0) / level.sqrt_recipm1_alphas_cumprod


def q_posterior(x_0: Tensor, x_t: Tensor, level: DiscreteLevel) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eqs. 6 and 7)."""
    mean = level.posterior_mean_coef1 * x_0 + level.posterior_mean_coef2 * x_t
    return mean, level.posterior_variance, level.posterior_log_variance_clipped


def p_mean_variance(
    prediction: Tensor,
    x_t: Tensor,
    level: DiscreteLevel,
    process: Process,
    denoised_fn: Callable[[Tensor], Tensor] | None = None,
) -> Posterior:
    """The reverse step's distribution by a prediction (B, C or 2C, ...); ``denoised_fn``: see ``predicted_x0``.

    Raises:
        InputError: the channels do not fit, or a learned variance was asked for and not predicted.
    """
    output, interpolation = split_prediction(prediction, x_t.shape[1])
    if process.learns_variance:
        if interpolation is None:
            raise InputError(
                f"variance {process.variance!r} needs {2 * x_t.shape[1]} channels, the network gave {x_t.shape[1]}: "
                "use 'fixed_small' or 'fixed_large'"
            )
        log_variance = learned_log_variance(interpolation, level, process)
        variance = log_variance.exp()
    elif process.variance == "fixed_large":
        variance, log_variance = level.fixed_large_variance, level.fixed_large_log_variance
    else:
        variance, log_variance = level.posterior_variance, level.posterior_log_variance_clipped
    x_0 = predicted_x0(output, x_t, level, process, denoised_fn)
    mean, _, _ = q_posterior(x_0, x_t, level)
    return Posterior(mean, variance, log_variance, x_0)


def learned_log_variance(interpolation: Tensor, level: DiscreteLevel, process: Process) -> Tensor:
    """The log variance that a network's last C channels stand for (Nichol & Dhariwal 2021, eq. 15): a new tensor."""
    share = (interpolation + 1).div_(2)
    if process.variance == "clamped_range":
        share = share.clamp_(0, 1)
    rest = _times(1 - share, level.posterior_log_variance_clipped)
    return rest.add_(_times(share, level.log_betas))


def _times(own: Tensor, factor: Tensor) -> Tensor:
    """The product, in the memory of ``own`` where it is of the same type."""
    return own.mul_(factor) if torch.result_type(own, factor) == own.dtype else own * factor


def predicted_x0(
    output: Tensor,
    x_t: Tensor,
    level: NoiseLevel,
    process: Process,
    denoised_fn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The clean sample that a network's first C channels stand for. ``denoised_fn`` changes it before it is clamped."""
    if process.parameterization == "eps" and isinstance(level, DiscreteLevel):
        x_0 = x0_from_eps(x_t, level, output)
    else:
        x_0 = convert(output, x_t, level, process.parameterization, "x0")
    if denoised_fn is not None:
        x_0 = denoised_fn(x_0)
    return x_0.clamp(-1, 1) if process.clip_denoised else x_0


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of diagonal Gaussians, elementwise, in nats."""
    # The order matters: near zero the sum cancels, and the published bounds carry its rounding.
    of_variances = -1 + log_variance2 - log_variance1 + torch.exp(log_variance1 - log_variance2)
    return 0.5 * (of_variances + (mean1 - mean2).square() * torch.exp(-log_variance2))
