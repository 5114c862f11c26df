"""The shape of an STDiT3. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class STDiT3Config:
    """The shape of an STDiT3. The defaults are the released STDiT3-XL/2's."""

    input_size: tuple[int, int, int] = (15, 30, 53)
    """(T, H, W) of the latents that are made unless another size is asked for. The network takes any."""
    input_sq_size: int = 512
    """Side in pixels of the square at which positions within a frame are not scaled."""
    in_channels: int = 4
    """Latent channels."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent pixels of a token: (T, H, W)."""
    hidden_size: int = 1152
    """Width of a token; a multiple of 4 and twice the heads. That of the 3B model is 1872."""
    depth: int = 28
    """Pairs of blocks: one within frames, one along time."""
    num_heads: int = 16
    """Attention heads; the 3B model has 26."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP, in hidden sizes."""
    caption_channels: int = 4096
    """Width of the caption features."""
    model_max_length: int = 300
    """Tokens of the null caption."""
    learn_sigma: bool = True
    """Predict 2C channels, of which the last C are not used."""
    qk_norm: bool = True
    """Whether self-attention normalises queries and keys."""
