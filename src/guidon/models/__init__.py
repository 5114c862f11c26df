"""Models: one folder per family, and shared code. ``registry`` lists the families, ``catalogue`` the presets.

The networks of the released models and their configurations are imported from here when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stdit.network import STDiT, STDiTConfig
    from .vae.config import TemporalVAEConfig
    from .vae.temporal import TemporalVAE
    from .vae.video import VideoVAE

_ROOMS = {
    "STDiT": "stdit.network",
    "STDiTConfig": "stdit.network",
    "TemporalVAE": "vae.temporal",
    "TemporalVAEConfig": "vae.config",
    "VideoVAE": "vae.video",
}
__all__ = ["STDiT", "STDiTConfig", "TemporalVAE", "TemporalVAEConfig", "VideoVAE"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
