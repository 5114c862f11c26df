"""Autoencoders: pixels to latents and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

FRAMES_TOGETHER = 32
"""Frames that are decoded in one pass."""


class Autoencoder(Protocol):
    """What the pipeline asks of an autoencoder."""

    def encode(self, frames: Tensor, /) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] to scaled latents (B, C, T, h, w), as the network uses; images without T."""
        ...

    def decode(self, latents: Tensor, /, micro_batch: int = FRAMES_TOGETHER, frames: int | None = None) -> Tensor:
        """Latents (B, C, T', h, w) to video (B, 3, T, H, W) in [-1, 1]; images without T.

        Args:
            latents: the latents.
            micro_batch: frames that are decoded in one pass: with fewer it needs less memory, and the last bits may
                differ.
            frames: T, for an autoencoder that compresses time: several lengths have latents of one shape.
        """
        ...
