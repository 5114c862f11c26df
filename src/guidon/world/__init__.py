"""Synthetic captioned video whose truth is known exactly.

Imports nothing else of guidon: the truth must not share a bug with what it judges.
"""

from typing import TYPE_CHECKING, Any

from .captions import Wanted, caption, plain_caption, read_caption, vocabulary
from .dataset import SPLITS, Attributes, Clip, clip, combinations, coverage_table, family, holds, mistaken
from .scene import (
    AREAS,
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FPS,
    FRAMES,
    MOTIONS,
    SHAPES,
    SIZE,
    SPEEDS,
    STILL,
    UNSEEN_SPEED,
    Scene,
    Thing,
    extents,
    inside,
)

if TYPE_CHECKING:
    from .drawing import coverage, foreground, render
    from .prompts import Fault, Prompt, PromptReader

__all__ = [
    "AREAS", "BACKGROUNDS", "COLOURS", "DIRECTIONS", "FPS", "FRAMES", "MOTIONS", "SHAPES", "SIZE", "SPEEDS", "SPLITS",
    "STILL", "UNSEEN_SPEED", "Attributes", "Clip", "Fault", "Prompt", "PromptReader", "Scene", "Thing", "Wanted",
    "caption", "clip", "combinations", "coverage", "coverage_table", "extents", "family", "foreground", "holds",
    "inside", "mistaken", "plain_caption", "read_caption", "render", "vocabulary",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Settings are checked without these: the one module needs numpy, the other holds many words.
    if name in ("coverage", "foreground", "render"):
        from . import drawing

        return getattr(drawing, name)
    if name in ("Fault", "Prompt", "PromptReader"):
        from . import prompts

        return getattr(prompts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
