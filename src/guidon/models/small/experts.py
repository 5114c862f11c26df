"""Two networks that divide the noise levels: one for high noise, which decides what a clip shows, one for low noise.

Two experts double the capacity of a model and its memory. Each step still costs one network (eDiff-I, 2211.01324,
sec. 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import InputError
from ...diffusion import NoiseLevel
from ..parts.captioned import Caption
from ..stdit.network import STDiT

SHARED = ("input_size", "in_channels", "patch_size", "caption_channels", "model_max_length", "learn_sigma")


@dataclass(frozen=True)
class ExpertCaption:
    """A batch of prompts for both networks, the same rows in each."""

    high: Caption
    low: Caption

    def cat(self, other: ExpertCaption) -> ExpertCaption:
        """Concatenate the rows: those of this object, then those of ``other``."""
        return ExpertCaption(self.high.cat(other.high), self.low.cat(other.low))


class Experts:
    """A ``Network`` of two: ``low`` predicts below ``boundary``, an original timestep, and ``high`` from there on.

    Raises:
        InputError: they are made for different latents, patches or captions.
    """

    branches_share_rows = True

    def __init__(self, high: STDiT, low: STDiT, boundary: int) -> None:
        for name in SHARED:
            ours, theirs = getattr(low.config, name), getattr(high.config, name)
            if ours != theirs:
                raise InputError(
                    f"the low-noise network's {name} is {ours}, the other's {theirs}: give two of one model"
                )
        self.high, self.low, self.boundary = high, low, boundary

    @property
    def networks(self) -> tuple[STDiT, STDiT]:
        """Both of them."""
        return self.high, self.low

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T, H, W) of one sample at the size the networks were made for."""
        return self.high.latent_shape

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return self.high.dtype

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> ExpertCaption:
        """All that depends on the prompts alone; arguments as of ``STDiT.prepare``."""
        return ExpertCaption(self.high.prepare(y, mask), self.low.prepare(y, mask))

    def null(self, rows: int, mask: Tensor | None = None) -> ExpertCaption:
        """The null caption, ``rows`` times."""
        return ExpertCaption(self.high.null(rows, mask), self.low.null(rows, mask))

    def network_at(self, level: NoiseLevel) -> STDiT:
        """The network for a level. It is chosen from values on the CPU, so there is no wait for the device.

        Raises:
            InputError: the samples have different noise levels.
        """
        if isinstance(level.timestep, Tensor):
            raise InputError("two experts need one noise level for the whole batch")
        return self.low if level.timestep < self.boundary else self.high

    def __call__(self, x: Tensor, level: NoiseLevel, cond: ExpertCaption, /) -> Tensor:
        """The prediction of the network for this level: x (B, C, T, H, W) -> fp32 (B, 2C, T, H, W).

        Raises:
            InputError: the samples have different noise levels.
        """
        network = self.network_at(level)
        return network(x, level, cond.low if network is self.low else cond.high)
