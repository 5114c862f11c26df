"""What is random in a denoiser's step beside its clips: timesteps, and which shape shows through."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.broadcasting import per_sample


def draw_timesteps(
    generator: torch.Generator, count: int, first: int, end: int, normal: tuple[float, float] | None
) -> Tensor:
    """Timesteps from ``first`` to ``end`` - 1, stratified: together they cover the distribution evenly. Long (count,).

    Args:
        generator: where the randomness comes from.
        count: how many.
        first, end: the range.
        normal: None for a uniform distribution; (mean, std) for a logit-normal one (Esser et al. 2403.03206, eq. 19).
    """
    u = (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1
    if normal is not None:
        mean, std = normal
        u = torch.sigmoid(mean + std * torch.special.ndtri(u.double())).float()
    return (first + u * (end - first)).long().clamp(max=end - 1)


def swap_shapes(
    x_0: Tensor, allowed: Tensor, share: float, family_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Let a clip of another shape show through in some samples: only the caption tells their shape.

    A network that sees the true shape in every x_t that it is trained on does not learn to read the word; when it
    samples, nothing tells it the shape.

    Args:
        x_0: clean latents (B, ...), in families of ``family_size`` neighbours that differ in shape alone.
        allowed: in which samples it may be, bool (B,).
        share: the share of them in which it is.
        family_size: clips in a family.
        generator: where the randomness comes from.

    Returns:
        What noise is to be added to, like ``x_0``, and in which samples it is not ``x_0``, bool (B,).
    """
    rows = len(x_0)
    chosen = torch.rand(rows, generator=generator) < share
    amount = torch.rand(rows, generator=generator)
    other = int(torch.randint(1, family_size, (), generator=generator))
    swapped = chosen & allowed
    sibling = x_0.unflatten(0, (-1, family_size)).roll(other, 1).flatten(0, 1)
    return x_0 + per_sample(amount * swapped, x_0) * (sibling - x_0), swapped
