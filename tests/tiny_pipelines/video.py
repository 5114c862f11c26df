"""The video families."""

from __future__ import annotations

from .contract import TinyPipeline

VIDEO: tuple[TinyPipeline, ...] = ()
