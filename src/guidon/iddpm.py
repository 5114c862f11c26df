"""IDDPM, the scheduler of Open-Sora 1.0 and 1.1, and other names that scripts of Open-Sora, DiT and PixArt import."""

from .bridges.opensora.iddpm import *  # noqa: F403
from .bridges.opensora.iddpm import __all__ as __all__
