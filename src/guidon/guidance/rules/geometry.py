"""Lengths and angles of samples: each sample's guided channels are one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.broadcasting import per_sample

if TYPE_CHECKING:
    from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, shaped to multiply them."""
    return per_sample((a * b).flatten(1).sum(1), a)


def norm(a: Tensor) -> Tensor:
    return dot(a, a).sqrt()


def projected(a: Tensor, onto: Tensor) -> Tensor:
    """The part of each sample of ``a`` that lies along that of ``onto``."""
    return onto * (dot(a, onto) / dot(onto, onto).clamp_min(1e-12))
