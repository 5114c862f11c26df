"""The shapes of the autoencoders. They are read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    padding: Literal["zeros", "replicate"] = "zeros"
    """What convolutions see beyond the border: "zeros", as in diffusers' autoencoder, or "replicate", the border
    itself. Zeros leave ticks in the corners of plain backgrounds."""
    decoder_padding: Literal["zeros", "replicate"] | None = None
    """What the decoder's convolutions see there; None for the same as the encoder's."""
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


@dataclass(frozen=True)
class TemporalVAEConfig:
    """The shape of a ``TemporalVAE``. The defaults are those of Open-Sora 1.2's released weights."""

    filters: int = 128
    """Channels of the first level."""
    num_res_blocks: int = 4
    """Residual blocks of each level."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Channels of each level, in multiples of ``filters``."""
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    """Whether the number of frames is halved after each level but the last."""
    num_groups: int = 32
    """Groups of each normalisation. They divide the channels of every level."""
    in_out_channels: int = 4
    """Channels of its input, the latents of single frames."""
    latent_embed_dim: int = 4
    """Channels between the encoder and the 1x1x1 convolution after it."""
    embed_dim: int = 4
    """Channels of its latents."""

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "temporal_downsample"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        levels, halved = len(self.channel_multipliers), len(self.temporal_downsample)
        if not levels or halved != levels - 1:
            raise InputError(
                f"a temporal autoencoder of {levels} levels (channel_multipliers) says {halved} times whether frames "
                f"are halved (temporal_downsample): give {max(levels - 1, 0)} for {max(levels, 1)} levels"
            )
        numbers = ("filters", "num_res_blocks", "num_groups", "in_out_channels", "latent_embed_dim", "embed_dim")
        for name, value in [(name, getattr(self, name)) for name in numbers] + [
            ("channel_multipliers", value) for value in self.channel_multipliers
        ]:
            if value < 1:
                raise InputError(f"a temporal autoencoder of {name} {value} cannot be made: give 1 or more")
        for multiplier in self.channel_multipliers:
            if self.filters * multiplier % self.num_groups:
                raise InputError(
                    f"a temporal autoencoder of {self.filters * multiplier} channels (filters {self.filters}) cannot "
                    f"be normalised in {self.num_groups} groups (num_groups): give a divisor"
                )

    @property
    def compression(self) -> int:
        """Frames of a latent frame."""
        return 2 ** sum(self.temporal_downsample)
