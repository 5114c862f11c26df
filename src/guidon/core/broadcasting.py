"""Shapes one value per sample so that it broadcasts over a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, ..., 1), so that they broadcast against ``like`` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))
