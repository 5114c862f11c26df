"""RFlow, the scheduler of Open-Sora 1.2, and the other names of rectified flow in Open-Sora."""

from .bridges.opensora.rflow import *  # noqa: F403
from .bridges.opensora.rflow import __all__ as __all__
