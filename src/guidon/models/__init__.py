"""Networks: tensors in, tensors out."""

from .dit import DiT, DiTConfig
from .experts import Experts
from .pixart import PixArt, PixArtConfig
from .stdit import STDiT, STDiTConfig
from .text import CaptionEncoder, CaptionEncoderConfig, TextEncoder
from .vae import FrameVAE, FrameVAEConfig

__all__ = [
    "CaptionEncoder", "CaptionEncoderConfig", "DiT", "DiTConfig", "Experts", "FrameVAE", "FrameVAEConfig", "PixArt",
    "PixArtConfig", "STDiT", "STDiTConfig", "TextEncoder",
]  # fmt: skip
