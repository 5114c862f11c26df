"""Synthetic captioned video whose truth is known exactly.

Imports nothing else of guidon: the truth must not share a bug with what it judges.
"""

from .captions import caption, plain_caption, vocabulary
from .dataset import SPLITS, Attributes, Clip, clip, combinations, coverage_table
from .render import coverage, foreground, render
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
    Scene,
    Thing,
)

__all__ = [
    "AREAS", "BACKGROUNDS", "COLOURS", "DIRECTIONS", "FPS", "FRAMES", "MOTIONS", "SHAPES", "SIZE", "SPEEDS", "SPLITS",
    "STILL", "Attributes", "Clip", "Scene", "Thing", "caption", "clip", "combinations", "coverage", "coverage_table",
    "foreground", "plain_caption", "render", "vocabulary",
]  # fmt: skip
