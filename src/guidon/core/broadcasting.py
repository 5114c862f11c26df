"""Shapes and precisions in which values meet a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, ..., 1), so that they broadcast against ``like`` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def per_frame(values: Tensor) -> Tensor:
    """Values (B, T) as (B, 1, T, 1, 1), so that they broadcast against videos (B, C, T, H, W)."""
    return values[:, None, :, None, None]


def whole_rows(values: Tensor, rows: int, name: str) -> Tensor:
    """Values (n, ...) repeated whole to a batch of so many rows: (0 ... n-1, 0 ... n-1).

    Raises:
        InputError: n does not divide the batch.
    """
    if not len(values) or rows % len(values):
        raise InputError(f"{name} has {len(values)} rows for a batch of {rows}: give one for each sample")
    return values.repeat(rows // len(values), *[1] * (values.ndim - 1))


def at_least_single(x: Tensor) -> Tensor:
    """The same numbers in fp32, or in fp64 where they are: what x times an fp32 tensor would be computed in."""
    return x.float() if x.dtype.itemsize < 4 else x
