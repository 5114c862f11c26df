"""Random draws of a denoiser's training step: timesteps, and samples into which another shape is mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.broadcasting import per_sample


def draw_timesteps(
    generator: torch.Generator,
    count: int,
    first: int,
    end: int,
    normal: tuple[float, float] | None,
    *,
    whole: bool = True,
) -> Tensor:
    """Timesteps from ``first`` to ``end``, stratified: together they cover the distribution evenly. (count,).

    Args:
        generator: where the randomness comes from.
        count: how many.
        first, end: the range.
        whole: long timesteps, up to ``end`` - 1, as the steps of a diffusion are. Else any numbers below ``end``.
        normal: None for a uniform distribution; (mean, std) for a logit-normal one (Esser et al. 2403.03206, eq. 19).
    """
    u = (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1
    if normal is not None:
        mean, std = normal
        u = torch.sigmoid(mean + std * torch.special.ndtri(u.double())).float()
    t = first + u * (end - first)
    return t.long().clamp(max=end - 1) if whole else t


def swap_shapes(
    x_0: Tensor, allowed: Tensor, share: float, family_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix a clip of another shape into some samples, so that only the caption tells the true shape.

    If every x_t in training shows the true shape, the network learns to read the shape from x_t and ignores the word
    in the caption. Sampling starts from pure noise, which shows no shape, so such a network gets the shape wrong.

    Args:
        x_0: clean latents (B, ...), in families of ``family_size`` neighbours that differ in shape alone.
        allowed: samples that may be mixed, bool (B,).
        share: the probability that an allowed sample is mixed.
        family_size: clips in a family.
        generator: where the randomness comes from.

    Returns:
        The latents to add noise to, with the shape of ``x_0``; and which samples were mixed, bool (B,).
    """
    rows = len(x_0)
    chosen = torch.rand(rows, generator=generator) < share
    amount = torch.rand(rows, generator=generator)
    other = int(torch.randint(1, family_size, (), generator=generator))
    swapped = chosen & allowed
    sibling = x_0.unflatten(0, (-1, family_size)).roll(other, 1).flatten(0, 1)
    return x_0 + per_sample(amount * swapped, x_0) * (sibling - x_0), swapped
