"""Networks: tensors in, tensors out."""

from .dit.network import DiT, DiTConfig
from .pixart.network import PixArt, PixArtConfig
from .small.experts import Experts
from .stdit.network import STDiT, STDiTConfig
from .text.captions import CaptionEncoder, CaptionEncoderConfig, TextEncoder
from .vae.frames import FrameVAE, FrameVAEConfig

__all__ = [
    "CaptionEncoder", "CaptionEncoderConfig", "DiT", "DiTConfig", "Experts", "FrameVAE", "FrameVAEConfig", "PixArt",
    "PixArtConfig", "STDiT", "STDiTConfig", "TextEncoder",
]  # fmt: skip
