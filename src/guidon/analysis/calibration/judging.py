"""Whether a candidate is no worse: every metric must exclude a loss beyond a margin that was fixed before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import InputError, setting
from ...metrics.metric import MARGIN, SHARE, Bench
from ...metrics.statistics import Interval, by_prompt, change_interval
from .blocks import Measured

DECIBELS, HALF = 1.0, 0.5
"""Margins where neither the user nor the bench gives one: a loss in dB, and in other units a share of the mean of the
model's own settings. A share may lose ``MARGIN``."""


@dataclass(frozen=True)
class Judgement:
    """One metric of a candidate against the model's own settings."""

    own: float
    """The mean of the model's own settings."""
    value: float
    """The candidate's."""
    loss: Interval
    """How much worse the candidate is, with its interval: below 0 it is better."""
    margin: float
    """The loss that the interval must exclude."""

    @property
    def no_worse(self) -> bool:
        """Whether a loss beyond the margin is excluded."""
        return self.loss.high < self.margin


@dataclass(frozen=True)
class Verified:
    """A candidate on held-out prompts."""

    measured: Measured
    judgements: Mapping[str, Judgement]
    """By metric."""
    faster: float
    """How many times less time a clip takes than with the model's own settings."""

    @property
    def not_shown(self) -> list[str]:
        """The metrics that do not exclude a loss beyond their margin."""
        return [name for name, each in self.judgements.items() if not each.no_worse]

    @property
    def no_worse(self) -> bool:
        """Whether every metric excludes a loss beyond its margin."""
        return not self.not_shown


def guarded_metrics(bench: Bench, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics that fast settings must not worsen: the given ones, or the bench's.

    Raises:
        InputError: one does not exist, or has no better direction.
    """
    chosen = tuple(names) or bench.guarded or tuple(n for n in bench.shown if bench.metrics[n].better is not None)
    for name in chosen:
        if bench.find_metric(name).better is None:
            raise InputError(
                f"{name} is neither better higher nor lower, so nothing can be no worse in it: leave it out"
            )
    return chosen


def check_margins(margins: Mapping[str, float], names: Sequence[str]) -> None:
    """Refuse a margin that is not above 0, or not of one of the guarded metrics.

    Raises:
        InputError: the message says which.
    """
    for name, margin in margins.items():
        if name not in names or not margin > 0:
            raise InputError(
                f"the {setting('margin')} {name}={margin:g} is not above 0, or not of a guarded metric "
                f"({', '.join(names)}): give another"
            )


def default_margin(bench: Bench, name: str, own: float) -> float:
    """The loss of a metric that is allowed where the user does not say it.

    Args:
        bench: it may say which loss cannot be seen.
        name: the metric.
        own: its mean under the model's own settings, on tuning prompts.
    """
    if name in bench.margins:
        return bench.margins[name]
    metric = bench.metrics[name]
    if metric.unit == SHARE:
        return MARGIN
    return DECIBELS if metric.unit == "dB" else HALF * abs(own)


def verify(
    bench: Bench, own: Measured, each: Measured, margins: Mapping[str, float], confidence: float = 0.95
) -> Verified:
    """A candidate against the model's own settings on the same held-out prompts."""
    judged: dict[str, Judgement] = {}
    for name, margin in margins.items():
        loss = loss_of(bench, name, own, each)
        both = np.isfinite(by_prompt(own.values[name]) + by_prompt(each.values[name]))
        means = [mean_of(by_prompt(side.values[name])[both]) for side in (own, each)]
        interval = change_interval(loss, share=bench.metrics[name].unit == SHARE, confidence=confidence)
        judged[name] = Judgement(means[0], means[1], interval, margin)
    return Verified(each, judged, own.seconds / each.seconds)


def loss_of(bench: Bench, name: str, own: Measured, each: Measured) -> np.ndarray:
    """By how much each prompt is worse, where both have a value."""
    change = by_prompt(own.values[name]) - by_prompt(each.values[name])
    change = change if bench.metrics[name].better == "higher" else -change
    return change[np.isfinite(change)]


def mean_of(values: np.ndarray) -> float:
    """The mean of the defined values; NaN where there is none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan
