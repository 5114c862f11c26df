"""The shape of the frame-wise autoencoder. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import InputError


@dataclass(frozen=True)
class FrameVAEConfig:
    """The shape of a ``FrameVAE``."""

    block_out_channels: tuple[int, ...] = (32, 64, 96)
    """Channels of each level; every level but the last halves the side."""
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 8
    mid_block_attention: bool = False
    """Whether the middle block has attention."""
    pixel_unshuffle: int = 2
    """Side of the squares of pixels that become channels before the first level; 1 for none."""
    padding: str = "zeros"
    """What convolutions see beyond the border: "zeros", as in diffusers' autoencoder, or "replicate", the border
    itself. Zeros leave ticks in the corners of plain backgrounds."""
    scaling_factor: float = 0.18215
    """What latents are multiplied by, so that their standard deviation is about 1."""

    def __post_init__(self) -> None:
        if self.pixel_unshuffle < 1 or not self.block_out_channels:
            raise InputError(
                f"an autoencoder of pixel_unshuffle {self.pixel_unshuffle} and {len(self.block_out_channels)} levels "
                "cannot be made: both are 1 or more"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel along one side."""
        return self.pixel_unshuffle * 2 ** (len(self.block_out_channels) - 1)
