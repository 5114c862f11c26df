"""Networks: tensors in, tensors out."""

from .dit import DiT, DiTConfig
from .pixart import PixArt, PixArtConfig
from .stdit import STDiT, STDiTConfig
from .text import CaptionEncoder, CaptionEncoderConfig, TextEncoder
from .vae import FrameVAE, FrameVAEConfig

__all__ = [
    "CaptionEncoder", "CaptionEncoderConfig", "DiT", "DiTConfig", "FrameVAE", "FrameVAEConfig", "PixArt",
    "PixArtConfig", "STDiT", "STDiTConfig", "TextEncoder",
]  # fmt: skip
