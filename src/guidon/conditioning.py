"""Open-Sora's mask strategies, prompts by loop and with scores, size tensors and tables of sizes."""

from .bridges.opensora.conditioning import *  # noqa: F403
from .bridges.opensora.conditioning import __all__ as __all__
