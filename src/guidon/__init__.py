"""Guidon: classifier-free guidance for latent video and image diffusion, by channel, measured.

    import guidon
    pipe = guidon.load("guidon-small")
    video = pipe("a red circle moves left on a white background", cfg_scale=4.0, cfg_channels=3, seed=0)
    video.save("circle.mp4")

Names are imported when first used: importing guidon costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ChannelScale": "guidance",
    "GuidanceTrace": "guidance",
    "GuidedDenoiser": "guidance",
    "IDDPM": "bridges.opensora",
    "InputError": "core.errors",
    "NoiseSchedule": "diffusion",
    "Pipeline": "pipeline",
    "Video": "pipeline",
    "inspect_checkpoint": "models.released",
    "load": "pipeline",
    "load_checkpoint": "models.released",
}
__all__ = [
    "IDDPM",
    "ChannelScale",
    "GuidanceTrace",
    "GuidedDenoiser",
    "InputError",
    "NoiseSchedule",
    "Pipeline",
    "Video",
    "inspect_checkpoint",
    "load",
    "load_checkpoint",
]

if TYPE_CHECKING:
    from .bridges.opensora import IDDPM
    from .core.errors import InputError
    from .diffusion import NoiseSchedule
    from .guidance import ChannelScale, GuidanceTrace, GuidedDenoiser
    from .models.released import inspect_checkpoint, load_checkpoint
    from .pipeline import Pipeline, Video, load


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'guidon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
