"""Autoencoders: pixels to latents and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Autoencoder(Protocol):
    """What the pipeline asks of an autoencoder."""

    def encode(self, frames: Tensor, /) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] to scaled latents (B, C, T, h, w), as the network uses; images without T."""
        ...

    def decode(self, latents: Tensor, /) -> Tensor:
        """Latents (B, C, T, h, w) to video (B, 3, T, H, W) in [-1, 1]; images without T."""
        ...
