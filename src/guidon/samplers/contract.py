"""What samplers are written against: a denoiser, and a source of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

from ..diffusion import NoiseLevel

SamplerName = Literal["ddpm", "ddim", "dpm-solver"]
Noise = Callable[[Tensor], Tensor]  # noise(x) gives standard normal values shaped like x


class Denoiser(Protocol):
    """What a sampler sees of a model under guidance."""

    def __call__(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        """The prediction (B, C or 2C, ...) for x (B, C, ...) at a level."""
        ...
