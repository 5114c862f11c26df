"""The branch without an image, where the image is frames of the clip itself, which a network is shown clean.

A network that reads which frames are clean (``NoiseLevel.noisy``) is called on the other frames alone: a clip in which
nothing was ever given. Noise in the place of the given frames would not do, since the network would be told of a noise
level that these frames do not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from ..core.errors import InputError, setting
from ..diffusion import NoiseLevel, split_prediction

C = TypeVar("C")


@dataclass(frozen=True, eq=False)
class WithoutFrames(Generic[C]):
    """``branch(x, level, uncond)`` gives the unconditional prediction without the frames that are clean."""

    network: Callable[[Tensor, NoiseLevel, C], Tensor]
    """Gives a prediction of any number of frames."""
    cond: C
    """The unconditional condition."""

    def __call__(self, x: Tensor, level: NoiseLevel, uncond: Tensor) -> Tensor:
        """The prediction (B, C or 2C, T, h, w), fp32. At the clean frames, and where all frames move, it is ``uncond``.

        Args:
            x: the noisy latents (B, C, T, h, w).
            level: their level; ``noisy`` says which frames are at it.
            uncond: the unconditional prediction of all frames.

        Raises:
            InputError: the clips differ in their clean frames, or clean frames lie between the others.
        """
        if level.noisy is None:
            return uncond
        clips: list[list[bool]] = level.noisy.cpu().numpy().tolist()  # one copy from the device
        if all(map(all, clips)):
            return uncond
        if any(clip != clips[0] for clip in clips):
            raise InputError(
                f"{setting('guidance')} three-way needs clips that are given the same frames: make them one by one"
            )
        moving = [frame for frame, is_noisy in enumerate(clips[0]) if is_noisy]
        if not moving:
            return uncond
        first, after = moving[0], moving[-1] + 1
        if after - first != len(moving):
            raise InputError(
                f"{setting('guidance')} three-way leaves out the given frames, and the others must be next to each "
                "other: give frames at the ends of the clip, or another rule"
            )
        found = self.network(x[:, :, first:after], dataclasses.replace(level, noisy=None), self.cond).float()
        split_prediction(found, x.shape[1])
        result = uncond.clone()
        result[:, :, first:after] = found
        return result
