"""When to guide: weights over the course of sampling. A weight w makes the scale s effectively 1 + w (s - 1).

A timing is called as ``timing(progress, number)``. Progress is 1 - t / (T - 1) of the original timestep t: 0 at pure
noise, 1 at the data, whatever the number of steps; ``number`` counts the steps from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..core.errors import InputError, nearest

Timing = Callable[[float, int], float]


def constant(progress: float, number: int = 0) -> float:
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

    def within(progress: float, number: int = 0) -> float:
        return 1.0 if start <= progress <= end else 0.0

    return within


def linear_ramp(progress: float, number: int = 0) -> float:
    """2 p: grows linearly and is 1 on average (Wang et al. 2404.13040, linear)."""
    return 2 * progress


def cosine_ramp(progress: float, number: int = 0) -> float:
    """1 - cos(pi p): grows as a half cosine and is 1 on average (Wang et al. 2404.13040, cosine)."""
    return 1 - math.cos(math.pi * progress)


def oscillation(start: int) -> Timing:
    """Guide every step before number ``start``, then every second one (Open-Sora 2.0, image guidance, start 10)."""
    if start < 0:
        raise InputError(f"guidance that oscillates from step {start}: give the number of a step, at least 0")

    def alternating(progress: float, number: int = 0) -> float:
        return 1.0 if number < start or number % 2 == 0 else 0.0

    return alternating


NAMED: dict[str, Timing] = {"constant": constant, "linear": linear_ramp, "cosine": cosine_ramp}


def parse_timing(text: str) -> Timing:
    """``"constant"``, ``"linear"``, ``"cosine"``, ``"interval:0.1,0.8"`` or ``"oscillation:10"``."""
    if text in NAMED:
        return NAMED[text]
    name, _, numbers = text.partition(":")
    if name not in ("interval", "oscillation"):
        raise InputError(
            f"guidance timing {text!r} does not exist{nearest(text, [*NAMED, 'interval:A,B', 'oscillation:N'])}"
        )
    try:
        if name == "oscillation":
            return oscillation(int(numbers or "10"))
        start, end = (float(number) for number in numbers.split(","))
        return interval(start, end)
    except InputError:
        raise
    except ValueError:
        wanted = (
            "two fractions of sampling such as 0.1,0.8" if name == "interval" else "the number of a step such as 10"
        )
        raise InputError(f"the guidance {name} {numbers!r} cannot be read: give {wanted}") from None
