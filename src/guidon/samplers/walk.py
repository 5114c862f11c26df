"""The walk from noise to data that samplers share: their steps, frames that are kept, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from ..core.progress import OnStep
from ..diffusion import NoiseLevel
from .contract import AfterStep, CheckedDenoiser, Noise
from .frames import FrameMask

L = TypeVar("L", bound=NoiseLevel)


def walk(
    predict: CheckedDenoiser,
    levels: Sequence[L],
    x: Tensor,
    noise: Noise,
    step: Callable[[Tensor, L, int], Tensor],
    *,
    on_step: OnStep | None,
    after_step: AfterStep | None,
    frames: FrameMask | None,
    on_change: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """x (B, C, ...) through every level.

    Args:
        predict: the denoiser that ``step`` calls.
        levels: those at which steps begin, from noise on.
        x: the sample at the first level.
        noise: a frame mask draws from it.
        step: ``step(x, level, k)`` makes step k, from 0 on, and gives the sample where the next one begins.
        on_step: called as ``on_step(done, total)``.
        after_step: see ``AfterStep``.
        frames: which frames are made, and which are kept.
        on_change: called after ``after_step`` with where it changed the sample, bool (B, C, ...).

    Raises:
        InputError: a prediction is not finite, or the frame mask does not fit.
    """
    last: NoiseLevel | None = None
    for k, level in enumerate(levels):
        before = x
        if frames is not None:
            x, level = frames.begin(x, level, noise, last)
        x = step(x, level, k)
        if frames is not None:
            x = frames.end(before, x, level)
        last = level
        if after_step:
            made = x if on_change is None else x.clone()  # it may also change x in place
            x = after_step(k, level, x)
            if on_change is not None:
                on_change(x != made)
        if on_step:
            on_step(k + 1, len(levels))
    predict.finish()
    return x
