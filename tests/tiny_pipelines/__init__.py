"""Tiny random diffusers pipelines, one for every family that the bridge knows."""

from __future__ import annotations

from .contract import Formula, Step, TinyPipeline, in_dtype, join, record, run
from .image import IMAGE
from .video import VIDEO

PIPELINES: tuple[TinyPipeline, ...] = (*IMAGE, *VIDEO)

__all__ = ["IMAGE", "PIPELINES", "VIDEO", "Formula", "Step", "TinyPipeline", "in_dtype", "join", "record", "run"]
