"""Models: one folder per family, and shared code. ``registry`` lists the families, ``catalogue`` the presets.

The networks of the released models and their configurations are imported from here when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mmdit.config import MMDiTConfig
    from .mmdit.network import MMDiT
    from .stdit.network import STDiT, STDiTConfig
    from .stdit2.network import STDiT2, STDiT2Config
    from .stdit3.network import STDiT3, STDiT3Config
    from .vae.config import TemporalVAEConfig
    from .vae.temporal import TemporalVAE
    from .vae.video import VideoVAE

_ROOMS = {
    "MMDiT": "mmdit.network",
    "MMDiTConfig": "mmdit.config",
    "STDiT": "stdit.network",
    "STDiT2": "stdit2.network",
    "STDiT2Config": "stdit2.network",
    "STDiT3": "stdit3.network",
    "STDiT3Config": "stdit3.network",
    "STDiTConfig": "stdit.network",
    "TemporalVAE": "vae.temporal",
    "TemporalVAEConfig": "vae.config",
    "VideoVAE": "vae.video",
}
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


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
