"""The shape of an STDiT2. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class STDiT2Config:
    """The shape of an STDiT2. The defaults are the released STDiT2-XL/2's."""

    input_size: tuple[int, int, int] = (16, 32, 32)
    """(T, H, W) of the latents that are made unless another size is asked for. The network takes any."""
    input_sq_size: int = 512
    """Side in pixels of the square at which positions within a frame are not scaled."""
    in_channels: int = 4
    """Latent channels."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent pixels of a token: (T, H, W)."""
    hidden_size: int = 1152
    """Width of a token; a multiple of 3, 4 and twice the heads."""
    depth: int = 28
    """Blocks."""
    num_heads: int = 16
    mlp_ratio: float = 4.0
    """Width of a block's MLP, in hidden sizes."""
    caption_channels: int = 4096
    """Width of the caption features."""
    model_max_length: int = 200
    """Tokens of the null caption."""
    learn_sigma: bool = True
    """Predict 2C channels: the last C interpolate the log variance."""
    qk_norm: bool = True
    """Whether self-attention normalises queries and keys."""
    qk_norm_legacy: bool = True
    """Whether temporal attention rotates queries and keys before it normalises them, as in Open-Sora 1.1, whose weights
    need it; later versions normalise first. Without ``qk_norm`` it has no effect."""
