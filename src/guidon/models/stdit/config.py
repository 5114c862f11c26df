"""The shape of an STDiT. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class STDiTConfig:
    """The shape of an STDiT. The defaults are Open-Sora 1.0's, at 256 px but for ``space_scale``."""

    input_size: tuple[int, int, int] = (16, 32, 32)
    """(T, H, W) of the latents that the model was made for. It takes other sizes, at the same scales."""
    in_channels: int = 4
    """Latent channels."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent pixels of a token: (T, H, W)."""
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
    learn_sigma: bool = True
    """Predict 2C channels: the last C interpolate the log variance."""
    space_scale: float = 1.0
    """What positions in space are divided by: 0.5 at 256 px, 1.0 at 512 px."""
    time_scale: float = 1.0
    """What positions in time are divided by."""
    refiner_channels: int = 0
    """Channels of a refiner (``parts.refiner``), which the originals do not have; 0 for none."""
    refiner_depth: int = 3
    """Layers of the refiner."""
    refiner_end: int = 0
    """The refiner acts at timesteps below this one; 0 where it acts at all."""
    finisher_channels: int = 0
    """Channels of a finisher (``parts.refiner``); 0 for none."""
    finisher_depth: int = 5
    """Layers of the finisher."""
    finisher_end: int = 100
    """The finisher acts at timesteps below this one."""
