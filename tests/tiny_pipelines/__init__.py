"""Tiny random diffusers pipelines, one for every family that the bridge knows."""

from __future__ import annotations

from .contract import Formula, Lend, Step, TinyPipeline, in_dtype, join, own, record, run, shared
from .image import IMAGE
from .variants import VARIANTS
from .video import VIDEO

PIPELINES: tuple[TinyPipeline, ...] = (*IMAGE, *VIDEO, *VARIANTS)

__all__ = [
    "IMAGE",
    "PIPELINES",
    "VARIANTS",
    "VIDEO",
    "Formula",
    "Lend",
    "Step",
    "TinyPipeline",
    "in_dtype",
    "join",
    "own",
    "record",
    "run",
    "shared",
]
