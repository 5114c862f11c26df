"""The shape of a PixArt. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PixArtConfig:
    """The shape of a PixArt. The defaults are PixArt-XL/2 at 256 px."""

    input_size: int = 32
    """Side of the latents that the model was made for."""
    patch_size: int = 2
    """Side of a token, in latent pixels."""
    in_channels: int = 4
    """Latent channels."""
    hidden_size: int = 1152
    depth: int = 28
    """Blocks."""
    num_heads: int = 16
    mlp_ratio: float = 4.0
    """Width of a block's MLP, in hidden sizes."""
    caption_channels: int = 4096
    """Width of the caption features."""
    model_max_length: int = 120
    """Tokens of the null caption."""
    lewei_scale: float = 1.0
    """What positions are divided by: 1 at 256 and 512 px, 2 at 1024 px."""
    learn_sigma: bool = True
    """Predict 2C channels: the last C interpolate the log variance."""
    micro_condition: bool = False
    """Embed the image's size and aspect ratio, and take any size, as the 1024-MS model does."""
    any_size: bool = False
    """Take any size without embedding it, as the models of PixArt-Sigma do."""
