"""Losses of diffusion models: the simple loss, the variational bound, bits per dimension (Nichol & Dhariwal 2021).

Every loss is per sample, (B,). Noise is an argument.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.broadcasting import per_frame
from ..core.errors import InputError
from .level import DiscreteLevel
from .posterior import (
    Posterior,
    Process,
    eps_from_x0,
    gaussian_kl,
    learned_log_variance,
    p_mean_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
)
from .prediction import split_prediction, target
from .schedule import NoiseSchedule

LossKind = Literal["mse", "rescaled_mse", "kl", "rescaled_kl"]
BITS = 1 / math.log(2)


def mean_of_frames(x: Tensor, frames: Tensor | None = None) -> Tensor:
    """The mean of every sample, (B,), over its values, or over those of the frames (B, T) that are True; 0 of none."""
    if frames is None:
        return x.flatten(1).mean(1)
    counted = (frames.sum(1) * (x[0].numel() // frames.shape[1])).clamp_min(1)
    return torch.where(per_frame(frames), x, 0).flatten(1).sum(1) / counted


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of x under a Gaussian integrated over bins of width 2/255, elementwise, in nats.

    x holds 8-bit values scaled to [-1, 1]. The outermost bins reach to infinity (Ho et al. 2020, eq. 13). The normal
    distribution function is approximated by tanh, as in the published bounds.
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z.pow(3))))

    centred, inverse = x - mean, torch.exp(-log_scale)
    below, above = cdf(inverse * (centred - 1 / 255)), cdf(inverse * (centred + 1 / 255))
    inside = (above - below).clamp_min(1e-12).log()
    at_bottom, at_top = above.clamp_min(1e-12).log(), (1 - below).clamp_min(1e-12).log()
    return torch.where(x < -0.999, at_bottom, torch.where(x > 0.999, at_top, inside))


def bound_term(
    posterior: Posterior, x_0: Tensor, x_t: Tensor, level: DiscreteLevel, frames: Tensor | None = None
) -> Tensor:
    """One term of the variational bound, bits per dimension, (B,).

    It is the KL divergence to the true posterior, or at step 0 the likelihood of the data. ``frames``, (B, T): only the
    frames that are True count.
    """
    true_mean, _, true_log_variance = q_posterior(x_0, x_t, level)
    kl = mean_of_frames(gaussian_kl(true_mean, true_log_variance, posterior.mean, posterior.log_variance), frames)
    last = torch.as_tensor(level.reaches_data, device=x_0.device)
    if last.device.type == "cpu" and not last.any():
        return kl * BITS  # the likelihood is the slowest part. On a GPU, this check would make the host wait
    log_scale = (0.5 * posterior.log_variance).to(x_0.device).expand_as(x_0)
    nll = -mean_of_frames(discretised_log_likelihood(x_0, posterior.mean, log_scale), frames)
    return torch.where(last, nll, kl) * BITS


def variance_bound(
    prediction: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    level: DiscreteLevel,
    process: Process,
    frames: Tensor | None = None,
) -> Tensor:
    """``bound_term`` of a prediction (B, 2C, ...), whose gradient trains the learned variance alone: not the mean."""
    with torch.no_grad():
        posterior = p_mean_variance(prediction, x_t, level, process)
    if process.learns_variance:
        learned = learned_log_variance(prediction[:, x_0.shape[1] :], level, process)
        posterior = dataclasses.replace(posterior, log_variance=learned)
    return bound_term(posterior, x_0, x_t, level, frames)


def training_losses(
    prediction: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    level: DiscreteLevel,
    noise: Tensor,
    process: Process,
    *,
    kind: LossKind = "mse",
    importance: Tensor | None = None,
    frames: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss of a prediction and its terms, each (B,).

    Args:
        prediction: (B, C or 2C, ...), of x_t.
        x_0: the clean sample (B, C, ...).
        x_t: ``q_sample(x_0, level, noise)``.
        level: the level of every sample.
        noise: the noise in x_t.
        process: what the prediction stands for.
        kind: "mse" is the simple loss; where the variance is learned, the bound with a detached mean is added to it
            (Nichol & Dhariwal 2021, eq. 16, the bound unscaled). "rescaled_mse" weights that bound by T/1000. "kl" is
            the bound alone, "rescaled_kl" T times the bound.
        importance: weights of the squared errors of the simple loss, broadcastable to x_0.
        frames: (B, T), True for the frames of videos (B, C, T, H, W) that count, at least one each; None counts all.

    Raises:
        InputError: the kind does not exist, or the channels do not fit.
    """
    if kind in ("kl", "rescaled_kl"):
        loss = bound_term(p_mean_variance(prediction, x_t, level, process), x_0, x_t, level, frames)
        return {"loss": loss * level.steps if kind == "rescaled_kl" else loss}
    if kind not in ("mse", "rescaled_mse"):
        raise InputError(f"loss {kind!r} does not exist; valid: mse, rescaled_mse, kl, rescaled_kl")
    output, interpolation = split_prediction(prediction, x_0.shape[1])
    squared = (target(x_0, noise, level, process.parameterization) - output).square()
    terms = {"mse": mean_of_frames(squared if importance is None else squared * importance, frames)}
    if interpolation is None:
        return {"loss": terms["mse"]} | terms
    terms["vb"] = variance_bound(prediction, x_0, x_t, level, process, frames)
    if kind == "rescaled_mse":
        terms["vb"] = terms["vb"] * (level.steps / 1000)
    return {"loss": terms["mse"] + terms["vb"]} | terms


def prior_bits(x_0: Tensor, schedule: NoiseSchedule) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)), bits per dimension, (B,): how far x_T is from pure noise."""
    mean, _, log_variance = q_mean_variance(x_0, schedule.levels[0])
    zero = torch.zeros((), device=x_0.device)
    return mean_of_frames(gaussian_kl(mean, log_variance, zero, zero)) * BITS


@dataclass(frozen=True)
class BitsPerDimension:
    """The whole variational bound of a batch. Columns go from the last step to the first."""

    total_bpd: Tensor
    """(B,)"""
    prior_bpd: Tensor
    """(B,)"""
    vb: Tensor
    """The bound's term of each step, (B, T)."""
    xstart_mse: Tensor
    """Mean squared error of the predicted x_0, (B, T)."""
    mse: Tensor
    """Mean squared error of the predicted noise, (B, T)."""


@torch.no_grad()
def bits_per_dimension(
    denoiser: Callable[[Tensor, DiscreteLevel], Tensor],
    x_0: Tensor,
    noise: Callable[[Tensor], Tensor],
    schedule: NoiseSchedule,
    process: Process,
) -> BitsPerDimension:
    """The variational bound of a batch, every step visited from the last to the first (Nichol & Dhariwal 2021, fig. 2).

    ``denoiser(x_t, level)`` gives the prediction. ``noise(x_0)`` is called once a step, in that order.
    """
    vb: list[Tensor] = []
    xstart_mse: list[Tensor] = []
    mse: list[Tensor] = []
    for level in schedule.levels:
        eps = noise(x_0)
        x_t = q_sample(x_0, level, eps)
        posterior = p_mean_variance(denoiser(x_t, level), x_t, level, process)
        vb.append(bound_term(posterior, x_0, x_t, level))
        xstart_mse.append(mean_of_frames((posterior.x_0 - x_0).square()))
        mse.append(mean_of_frames((eps_from_x0(x_t, level, posterior.x_0) - eps).square()))
    prior = prior_bits(x_0, schedule)
    columns = [torch.stack(values, dim=1) for values in (vb, xstart_mse, mse)]
    return BitsPerDimension(columns[0].sum(1) + prior, prior, *columns)
