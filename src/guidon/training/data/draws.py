"""Random draws of a denoiser's training step: timesteps, and samples into which a sibling is mixed."""

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


def swap_siblings(
    x_0: Tensor,
    allowed: Tensor,
    size_told: Tensor,
    generator: torch.Generator,
    *,
    shapes: int,
    shape_share: float,
    size_share: float,
) -> tuple[Tensor, Tensor]:
    """Mix another clip of the family into some samples, so that only the caption tells the true shape and size.

    If every x_t in training shows the true shape, the network learns to read the shape from x_t and ignores the word
    in the caption. Sampling starts from pure noise, which shows no shape, so such a network gets the shape wrong. It
    is the same with sizes.

    Args:
        x_0: clean latents (B, ...), in families of neighbours: ``shapes`` clips that differ in shape alone. With a
            ``size_share``, the same ``shapes`` clips in the other size follow, in the same order.
        allowed: samples that may be mixed, bool (B,).
        size_told: samples whose caption names the size, bool (B,).
        generator: where the randomness comes from.
        shapes: clips of one size in a family.
        shape_share: the share of the allowed samples that get a clip of another shape. A family that holds a shape
            several times may give the same shape.
        size_share: the share of the allowed samples whose caption names the size that get a clip of the other size. It
            is drawn independently: a sample that both draws choose gets one clip that differs in shape and in size.

    Returns:
        The latents to add noise to, with the shape of ``x_0``; and which samples were mixed, bool (B,).
    """
    rows = len(x_0)
    own = torch.arange(rows)
    places = own.view(-1, 2 if size_share else 1, shapes)  # (families, sizes, shapes)
    by_shape = torch.rand(rows, generator=generator) < shape_share
    amount = torch.rand(rows, generator=generator)
    other = int(torch.randint(1, shapes, (), generator=generator))
    sibling = torch.where(by_shape, places.roll(other, 2).flatten(), own)
    if size_share:
        by_size = (torch.rand(rows, generator=generator) < size_share) & size_told
        sibling = torch.where(by_size, places.roll(1, 1).flatten()[sibling], sibling)
    swapped = (sibling != own) & allowed
    return x_0 + per_sample(amount * swapped, x_0) * (x_0[sibling] - x_0), swapped
