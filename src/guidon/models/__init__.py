"""Models: one folder per family, and shared code. ``registry`` lists the families, ``catalogue`` the presets.

The networks of the released models and their configurations are imported from here when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import imported_later

if TYPE_CHECKING:
    from .mmdit.config import MMDiTConfig
    from .mmdit.network import MMDiT
    from .stdit.network import STDiT, STDiTConfig
    from .stdit2.network import STDiT2, STDiT2Config
    from .stdit3.network import STDiT3, STDiT3Config
    from .vae.config import TemporalVAEConfig
    from .vae.temporal import TemporalVAE
    from .vae.video import VideoVAE

__all__ = [
    "MMDiT",
    "MMDiTConfig",
    "STDiT",
    "STDiT2",
    "STDiT2Config",
    "STDiT3",
    "STDiT3Config",
    "STDiTConfig",
    "TemporalVAE",
    "TemporalVAEConfig",
    "VideoVAE",
]
__getattr__ = imported_later(
    __name__, "mmdit.config", "vae.config", "vae.temporal", "vae.video", "stdit.network", "stdit2.network",
    "stdit3.network", "mmdit.network",
)  # fmt: skip
