"""STDiT3 as a network of rectified flow: the parameterisation "flow", noise - x_0, in C channels.

STDiT3 itself predicts x_0 - noise, and beside it C channels that nothing was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...diffusion import NoiseLevel
from ..network import ClipFacts
from ..parts.captioned import Caption
from .network import STDiT3


class Velocity:
    """A ``Network``. See above."""

    reads_frame_mask = True

    def __init__(self, network: STDiT3) -> None:
        self.network = network

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T, H, W) of one sample at the size that is made unless another is asked for."""
        return self.network.latent_shape

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.network.dtype

    @property
    def blocks(self) -> list[Any]:
        """All blocks in the order in which they run."""
        return self.network.blocks

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> Caption:
        """See ``Network.prepare``."""
        return self.network.prepare(y, mask)

    def null(self, rows: int, mask: Tensor | None = None) -> Caption:
        """See ``Network.null``."""
        return self.network.null(rows, mask)

    def told(self, clip: ClipFacts) -> Callable[[Tensor, NoiseLevel, Caption], Tensor]:
        """See ``STDiT3.told``."""
        told = self.network.told(clip)
        return lambda x, level, cond: -told(x, level, cond)[:, : x.shape[1]]

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Caption, /) -> Tensor:
        """noise - x_0 for x (B, C, T, H, W), shaped like x; fp32."""
        return -self.network(x, level, cond)[:, : x.shape[1]]
