"""Prompt to video: how a pipeline is found, called and run, and what the manifests of its clips say."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later

if TYPE_CHECKING:
    from .loading import from_diffusers, load, reproduce
    from .pipeline import Pipeline

__all__ = ["Pipeline", "from_diffusers", "load", "reproduce"]
__getattr__ = imported_later(__name__, "pipeline", "loading")
