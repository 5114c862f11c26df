"""The shape of a DiT. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT. The defaults are DiT-XL/2 at 256 px."""

    input_size: int = 32
    """Side of the latents."""
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
    num_classes: int = 1000
    """Classes, without the null class."""
    learn_sigma: bool = True
    """Predict 2C channels: the last C interpolate the log variance."""
    frequency_shift: int = 0
    """Frequencies of the timestep embedding: 0 as in DiT, 1 as in diffusers' ``DiTTransformer2DModel``. A network needs
    those that it was trained with."""
    own_embedders: bool = False
    """Whether every block embeds timestep and class with weights of its own, as a DiT that was trained in diffusers.
    In the original all blocks share one embedding."""
    mlp_norm_eps: float = 1e-6
    """Epsilon of the norm before a block's MLP; the default of diffusers' ``DiTTransformer2DModel`` is 1e-5."""
