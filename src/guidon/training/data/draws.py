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
    x_0: Tensor, allowed: Tensor, shape: float, sized: Tensor, size: float, shapes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix another clip of the family into some samples, so that only the caption tells the true shape and size.

    If every x_t in training shows the true shape, the network learns to read the shape from x_t and ignores the word
    in the caption. Sampling starts from pure noise, which shows no shape, so such a network gets the shape wrong. It
    is the same with sizes.

    Args:
        x_0: clean latents (B, ...), in families of neighbours: ``shapes`` clips that differ in shape alone. If
            ``size`` is not 0, the same ``shapes`` clips in the other size follow, in the same order.
        allowed: samples that may be mixed, bool (B,).
        shape: the share of allowed samples that are mixed with a clip of another shape.
        sized: samples that may be mixed with a clip of the other size, bool (B,).
        size: the share of them that are. A sample that is mixed for both is mixed with one clip that differs in both.
        shapes: clips of one size in a family.
        generator: where the randomness comes from.

    Returns:
        The latents to add noise to, with the shape of ``x_0``; and which samples were mixed, bool (B,).
    """
    rows = len(x_0)
    by_shape = torch.rand(rows, generator=generator) < shape
    amount = torch.rand(rows, generator=generator)
    other = int(torch.randint(1, shapes, (), generator=generator))
    families = x_0.unflatten(0, (-1, shapes))
    sibling = torch.where(per_sample(by_shape, x_0), families.roll(other, 1).flatten(0, 1), x_0)
    chosen = by_shape
    if size:
        by_size = (torch.rand(rows, generator=generator) < size) & sized
        of_size = x_0.unflatten(0, (-1, 2, shapes)).roll(1, 1)
        of_both = of_size.roll(other, 2).flatten(0, 2)
        of_size = torch.where(per_sample(by_shape, x_0), of_both, of_size.flatten(0, 2))
        sibling = torch.where(per_sample(by_size, x_0), of_size, sibling)
        chosen = by_shape | by_size
    swapped = chosen & allowed
    return x_0 + per_sample(amount * swapped, x_0) * (sibling - x_0), swapped
