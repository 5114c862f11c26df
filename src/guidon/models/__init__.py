"""Networks: tensors in, tensors out."""

from .stdit import STDiT, STDiTConfig
from .text import CaptionEncoder, CaptionEncoderConfig, TextEncoder
from .vae import FrameVAE, FrameVAEConfig

__all__ = [
    "CaptionEncoder", "CaptionEncoderConfig", "FrameVAE", "FrameVAEConfig", "STDiT", "STDiTConfig", "TextEncoder",
]  # fmt: skip
