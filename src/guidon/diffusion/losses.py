"""What diffusion models are trained and judged by: the simple loss, the variational bound, bits per dimension.

Everything is per sample, (B,), and takes its noise as an argument. Nichol & Dhariwal 2021, sec. 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import InputError
from .posterior import (
    Posterior,
    Process,
    eps_from_x0,
    gaussian_kl,
    p_mean_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
    split_prediction,
    velocity,
)
from .schedule import ScheduleTables

LossKind = Literal["mse", "rescaled_mse", "kl", "rescaled_kl"]
BITS = 1 / math.log(2)


def _per_sample(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of x under a Gaussian integrated over bins of width 2/255, elementwise, in nats.

    x is scaled as 8-bit values in [-1, 1]; the outermost bins reach to infinity (Ho et al. 2020, eq. 13). The normal
    distribution function is its tanh approximation, as in the published bounds.
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z.pow(3))))

    centred, inverse = x - mean, torch.exp(-log_scale)
    below, above = cdf(inverse * (centred - 1 / 255)), cdf(inverse * (centred + 1 / 255))
    inside = (above - below).clamp_min(1e-12).log()
    at_bottom, at_top = above.clamp_min(1e-12).log(), (1 - below).clamp_min(1e-12).log()
    return torch.where(x < -0.999, at_bottom, torch.where(x > 0.999, at_top, inside))


def bound_term(posterior: Posterior, x_0: Tensor, x_t: Tensor, step: Tensor, tables: ScheduleTables) -> Tensor:
    """One term of the variational bound, bits per dimension: KL to the true posterior, or the likelihood at step 0."""
    true_mean, _, true_log_variance = q_posterior(x_0, x_t, step, tables)
    kl = _per_sample(gaussian_kl(true_mean, true_log_variance, posterior.mean, posterior.log_variance))
    log_scale = (0.5 * posterior.log_variance).expand_as(x_0)
    nll = -_per_sample(discretised_log_likelihood(x_0, posterior.mean, log_scale))
    return torch.where(step == 0, nll, kl) * BITS


def training_losses(
    prediction: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    step: Tensor,
    noise: Tensor,
    tables: ScheduleTables,
    process: Process,
    *,
    kind: LossKind = "mse",
    importance: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss of a prediction and its terms, each (B,).

    "mse" is the simple loss, plus the bound with its mean detached when the variance is learned (Nichol & Dhariwal
    2021, eq. 16, the bound unscaled); "rescaled_mse" weighs that bound by T/1000; "kl" is the bound alone and
    "rescaled_kl" T times it. ``x_t`` must be ``q_sample(x_0, step, noise)``. ``importance``, broadcastable to x_0,
    weighs the squared errors of the simple loss.
    """
    if kind in ("kl", "rescaled_kl"):
        loss = bound_term(p_mean_variance(prediction, x_t, step, tables, process), x_0, x_t, step, tables)
        return {"loss": loss * len(tables) if kind == "rescaled_kl" else loss}
    if kind not in ("mse", "rescaled_mse"):
        raise InputError(f"loss {kind!r} does not exist; valid: mse, rescaled_mse, kl, rescaled_kl")
    output, interpolation = split_prediction(prediction, x_0.shape[1])
    if process.parameterization == "v":
        target = velocity(x_0, step, noise, tables)
    else:
        target = noise if process.parameterization == "eps" else x_0
    squared = (target - output).square()
    terms = {"mse": _per_sample(squared if importance is None else squared * importance)}
    if interpolation is None:
        return {"loss": terms["mse"]} | terms
    frozen = torch.cat([output.detach(), interpolation], dim=1)
    terms["vb"] = bound_term(p_mean_variance(frozen, x_t, step, tables, process), x_0, x_t, step, tables)
    if kind == "rescaled_mse":
        terms["vb"] = terms["vb"] * (len(tables) / 1000)
    return {"loss": terms["mse"] + terms["vb"]} | terms


def prior_bits(x_0: Tensor, tables: ScheduleTables) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)), bits per dimension: what the schedule leaves of the signal at its last step."""
    last = torch.full((len(x_0),), len(tables) - 1, device=x_0.device)
    mean, _, log_variance = q_mean_variance(x_0, last, tables)
    zero = torch.zeros((), device=x_0.device)
    return _per_sample(gaussian_kl(mean, log_variance, zero, zero)) * BITS


@dataclass(frozen=True)
class BitsPerDimension:
    """The whole bound. ``total_bpd`` and ``prior_bpd`` are (B,); the others (B, T), from the last step to the first."""

    total_bpd: Tensor
    prior_bpd: Tensor
    vb: Tensor
    xstart_mse: Tensor
    mse: Tensor


@torch.no_grad()
def bits_per_dimension(
    denoiser: Callable[[Tensor, int], Tensor],
    x_0: Tensor,
    noise: Callable[[Tensor], Tensor],
    tables: ScheduleTables,
    process: Process,
) -> BitsPerDimension:
    """The variational bound of a batch, every step visited from the last to the first (Nichol & Dhariwal 2021, fig. 2).

    ``denoiser(x_t, step)`` gives the prediction; ``noise(x_0)`` is asked once a step, in that order.
    """
    vb: list[Tensor] = []
    xstart_mse: list[Tensor] = []
    mse: list[Tensor] = []
    for index in reversed(range(len(tables))):
        step = torch.full((len(x_0),), index, device=x_0.device)
        eps = noise(x_0)
        x_t = q_sample(x_0, step, eps, tables)
        posterior = p_mean_variance(denoiser(x_t, index), x_t, step, tables, process)
        vb.append(bound_term(posterior, x_0, x_t, step, tables))
        xstart_mse.append(_per_sample((posterior.x_0 - x_0).square()))
        mse.append(_per_sample((eps_from_x0(x_t, step, posterior.x_0, tables) - eps).square()))
    prior = prior_bits(x_0, tables)
    columns = [torch.stack(values, dim=1) for values in (vb, xstart_mse, mse)]
    return BitsPerDimension(columns[0].sum(1) + prior, prior, *columns)
