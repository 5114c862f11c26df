"""The first metrics of the synthetic world, for studies that were planned with them.

``shape`` asked only which shape is nearest, ``size`` which of the two is, and ``joint`` left size out. Such a study
keeps these meanings when it is resumed or reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import world
from .metric import Bench, Metric, Values

DEMANDS = world.Demands(
    joint=("one_object", "colour", "shape", "direction", "background"), outline=math.inf, size=math.inf
)
MEANINGS = {
    "joint": "one_object, colour, shape, direction and background are all right",
    "shape": "the shape template of the highest IoU with the object is the caption's",
    "size": "the size nearest to the object's area is the caption's",
}
WORDS = {"joint": "of clips show all that was asked but for the size"}
METRICS: dict[str, Metric] = {
    name: replace(metric, meaning=MEANINGS.get(name, metric.meaning), words=WORDS.get(name, metric.words))
    for name, metric in world.METRICS.items()
    if name != "outline_error"
}


def _measure(frames: np.ndarray, captions: Sequence[str]) -> Values:
    values = world.measure_captioned(frames, captions, DEMANDS)
    return {name: values[name] for name in METRICS}


BENCH: Bench = replace(
    world.BENCH,
    name="world-1",
    metrics=METRICS,
    measure=_measure,
    shown=tuple(name for name in world.BENCH.shown if name in METRICS and name != "size"),
    watched=tuple(name for name in world.BENCH.watched if name in METRICS and name != "size"),
    goal=None,
)
