"""When to guide: weights over the course of sampling. A weight w makes the scale s effectively 1 + w (s - 1).

Progress is 1 - t / (T - 1) of the original timestep t: 0 at pure noise, 1 at the data, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import InputError, nearest

Timing = Callable[[float], float]


def constant(progress: float) -> float:
    """The same scale throughout."""
    return 1.0


def interval(start: float, end: float) -> Timing:
    """Guide from ``start`` to ``end`` of progress only, both in [0, 1] (Kynkäänniemi et al. 2404.07724)."""
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= 1 and 0 <= end <= 1):
        raise InputError(
            f"the guidance interval {start:g},{end:g} leaves [0, 1]: 0 is the start of sampling (noise), 1 its end"
        )
    if start >= end:
        raise InputError(
            f"the guidance interval {start:g},{end:g} runs backwards or is empty: give the smaller number first"
        )

    def within(progress: float) -> float:
        return 1.0 if start <= progress <= end else 0.0

    return within


def linear_ramp(progress: float) -> float:
    """2 p: grows linearly and is 1 on average (Wang et al. 2404.13040, linear)."""
    return 2 * progress


def cosine_ramp(progress: float) -> float:
    """1 - cos(pi p): grows as a half cosine and is 1 on average (Wang et al. 2404.13040, cosine)."""
    return 1 - math.cos(math.pi * progress)


NAMED: dict[str, Timing] = {"constant": constant, "linear": linear_ramp, "cosine": cosine_ramp}


def parse_timing(text: str) -> Timing:
    """``"constant"``, ``"linear"``, ``"cosine"`` or ``"interval:0.1,0.8"``."""
    if text in NAMED:
        return NAMED[text]
    name, colon, numbers = text.partition(":")
    if name != "interval" or not colon:
        raise InputError(f"guidance timing {text!r} does not exist{nearest(text, [*NAMED, 'interval:A,B'])}")
    try:
        start, end = (float(number) for number in numbers.split(","))
    except ValueError:
        raise InputError(
            f"the guidance interval {numbers!r} cannot be read: give two fractions of sampling such as 0.1,0.8"
        ) from None
    return interval(start, end)
