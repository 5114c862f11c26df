"""How many times faster one arm is than another: a ratio within each round, so that a slow minute slows both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...core.errors import InputError
from ...metrics.statistics import Interval

RESAMPLES = 9999
ENOUGH = 6
"""Rounds without which no interval of a median covers 95%: the range of 5 covers 1 - 2 / 2^5, which is 94%."""
WIDEST = 0.03
"""An A/A interval that is wider than this share says that the run is noisy."""


def paired_ratio(base: Sequence[float], arm: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The median over rounds of base / arm, with its bootstrap percentile interval: above 1, the arm is faster.

    Args:
        base: the time of the base in each round.
        arm: the time of the arm in the same rounds.
        confidence: of the interval.
        seed: of the resampling of rounds.

    Raises:
        InputError: the rounds do not pair, or a time is not above 0.
    """
    a, b = np.asarray(base, float), np.asarray(arm, float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"times of shapes {a.shape} and {b.shape} do not pair: give one of each for every round")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise InputError("a time is not a number above 0: measure more work in each round")
    ratios = a / b
    middle = float(np.median(ratios))
    if len(ratios) == 1:
        return Interval(middle, math.nan, math.nan, "one round: no interval")
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(middle, float(low), float(high))


def noise_of(twin: Interval, rounds: int) -> str:
    """Why a run is noisy by its A/A ratio, in words; empty if it is not.

    Args:
        twin: the ratio of the base to itself, measured as if it were another arm.
        rounds: how many there were.
    """
    if rounds < ENOUGH:
        return f"{ENOUGH} rounds or more are needed for an interval of 95%"
    if not twin.low <= 1 <= twin.high:
        return "the interval of A/A misses 1"
    if twin.high - twin.low > WIDEST:
        return f"the interval of A/A is wider than {WIDEST:.0%}"
    return ""
