"""The answer of a study to its primary contrast, in words, and then in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..metrics.metric import SHARE, Metric
from ..metrics.statistics import Comparison, by_prompt, compare, detectable_difference
from .plan import Plan
from .results import Results
from .words import (
    list_choices,
    round_points,
    spell_count,
    spell_settings,
    tell_apart,
    write_interval,
    write_p,
    write_value,
)

LARGE_POINTS = 0.2  # a share's difference from which only "large" ones are detected
LARGE_RATIO = 0.5  # the same for other units, as a share of the mean
NO_DIFFERENCE = "no difference found"
NOT_CERTAIN = "seen here, but not certain"


@dataclass(frozen=True)
class Pairing:
    """One metric of two settings, b against a, on the prompts on which both have a value."""

    metric: Metric
    comparison: Comparison
    """Two or more prompts have both values."""
    means: tuple[float, float]
    """The means of a and of b."""
    higher: int
    """On how many prompts b is higher."""
    lower: int
    """On how many prompts b is lower."""
    detectable: float
    """The smallest difference that so many prompts detect. NaN if no prompt differs, infinite for too few prompts."""

    @classmethod
    def of(cls, metric: Metric, a: np.ndarray, b: np.ndarray) -> Pairing | None:
        """From values (prompts, seeds). None if fewer than two prompts have both values."""
        comparison = compare(a, b, better=metric.better)
        if not math.isfinite(comparison.p):
            return None
        both = np.isfinite(a) & np.isfinite(b)
        means = [float(np.nanmean(by_prompt(np.where(both, side, np.nan)))) for side in (a, b)]
        change = by_prompt(np.asarray(b, float) - np.asarray(a, float))
        change = change[np.isfinite(change)]
        return cls(
            metric,
            comparison,
            (means[0], means[1]),
            int((change > 0).sum()),
            int((change < 0).sum()),
            detectable_difference(change, share=metric.unit == SHARE),
        )

    @property
    def equal(self) -> int:
        """On how many prompts both are equal."""
        return self.comparison.pairs - self.higher - self.lower

    def verdict(self, p: float) -> str:
        """ "better", "worse", "higher" or "lower" of b, where p is below 0.05.

        Otherwise ``NOT_CERTAIN`` if the interval, which is not corrected, excludes 0; else ``NO_DIFFERENCE``.
        """
        if p < 0.05:
            return self._direction()
        change = self.comparison.difference
        return NOT_CERTAIN if change.low > 0 or change.high < 0 else NO_DIFFERENCE

    def _direction(self) -> str:
        higher = self.comparison.difference.value > 0
        if self.metric.better is None:
            return "higher" if higher else "lower"
        return "better" if higher == (self.metric.better == "higher") else "worse"

    def sentence(self, names: tuple[str, str], p: float, comparisons: int = 1) -> str:
        """The result in words, without a power statement.

        Args:
            names: of a and b, such as ``tell_apart`` gives.
            p: the p value, corrected for the number of comparisons.
            comparisons: for how many comparisons p is corrected.
        """
        (a, b), (x, y) = names, (write_value(mean, self.metric.unit) for mean in self.means)
        verdict = self.verdict(p)
        if verdict == NO_DIFFERENCE:
            return f"No difference found between {a} and {b}: {self._measured(x, 'and', y)}."
        aside = "" if self.metric.better else " (neither way is better by itself)"
        result = self._direction().capitalize()
        measured = f"{self._measured(y, 'against', x)}{aside}."
        if verdict != NOT_CERTAIN:
            return f"{result} with {b} than with {a}: {measured}"
        unsure = f"{result} here with {b} than with {a}, but not certain: {measured}"
        prompts = spell_count(self.comparison.pairs, "prompt")
        if comparisons == 1:
            return f"{unsure} {prompts} cannot rule out chance ({write_p(p)})."
        return (
            f"{unsure} With {comparisons} comparisons, {prompts[0].lower()}"
            f"{prompts[1:]} cannot rule out chance ({write_p(self.comparison.p)} before the correction, {write_p(p)} "
            "after it)."
        )

    def _measured(self, first: str, joint: str, second: str) -> str:
        if self.metric.unit == SHARE:
            return f"{first} {joint} {second} {self.metric.words or self.metric.label}"
        return f"{self.metric.label} ({self.metric.unit}) {first} {joint} {second}"

    def counts(self) -> str:
        """On how many prompts b is better, worse and equal, in words."""
        up, down = ("higher", "lower") if self.metric.better is None else ("better", "worse")
        first, second = (self.lower, self.higher) if self.metric.better == "lower" else (self.higher, self.lower)
        return f"{up} on {first}, {down} on {second}, equal on {self.equal} of {self.comparison.pairs} prompts"

    @property
    def differs(self) -> bool:
        """Whether any prompt has different values."""
        return self.equal < self.comparison.pairs

    def change(self) -> str:
        """The difference with its interval. Where no prompt differs there is nothing to estimate an interval from."""
        if self.differs:
            return write_interval(self.comparison.difference, self.metric.unit)
        return f"no prompt differs (0 of {self.comparison.pairs})"

    def numbers(self) -> str:
        """The difference, its interval and its p value; a bound of the difference where no prompt differs."""
        result = self.comparison
        if self.differs:
            effect = f", d_z = {result.d_z:.2f}" if math.isfinite(result.d_z) else ""
            return f"{self.change()} (95% interval), {write_p(result.p)}{effect}."
        return f"{self.change()}, so the interval cannot be estimated."

    def power(self) -> str:
        """What so many prompts could have shown, in words."""
        pairs = self.comparison.pairs
        prompts = spell_count(pairs, "prompt")
        if not self.differs and self.metric.unit == SHARE and pairs > 3:
            # No prompt changes a share by more than 1, so the share of prompts that differ bounds the difference.
            return (
                f"No prompt differs. With {pairs} prompts, the true difference may still be up to about "
                f"{300 / pairs:.2g} points (3/{pairs}, the rule of three)."
            )
        if math.isinf(self.detectable):
            return f"{prompts} are too few: they cannot detect any difference."
        if math.isnan(self.detectable):
            return f"The two settings have the same value on all {self.comparison.pairs} prompts."
        if self.metric.unit == SHARE:
            size, large, seen = round_points(self.detectable), LARGE_POINTS, self.detectable
        else:
            size, large = f"{self.detectable:.2g} {self.metric.unit}", LARGE_RATIO
            seen = self.detectable / abs(self.means[0]) if self.means[0] else math.inf
        if seen >= large:
            return f"{prompts} can only detect large differences (about {size})."
        return f"{prompts} can detect differences of about {size} or more."


@dataclass(frozen=True)
class Answer:
    """The answer to a study's primary contrast."""

    headline: str
    """In words, for a reader who has not read the plan."""
    numbers: str
    """The difference, its interval and its p value."""

    def __str__(self) -> str:
        return f"{self.headline}\n{self.numbers}"


def answer(plan: Plan, found: Results) -> Answer:
    """The answer to the primary contrast, and what the study could have detected."""
    primary, names = plan.primary, spell_settings(plan.settings)
    metric = plan.metrics[primary.metric]
    a, b = found[primary.baseline][metric.name], found[primary.against][metric.name]
    pair = Pairing.of(metric, a, b)
    if pair is None:
        return Answer(
            f"{names[primary.against]} cannot be compared with {names[primary.baseline]}: fewer than two prompts have "
            f"a value of {metric.label} in both.",
            f"{spell_count(len(by_prompt(a)), 'prompt')} in the study. The value is undefined if {metric.undefined}.",
        )
    result = pair.comparison
    choices = list_choices(plan.settings)
    headline = pair.sentence(tell_apart(choices[primary.baseline], choices[primary.against]), result.p)
    if pair.verdict(result.p) in (NO_DIFFERENCE, NOT_CERTAIN):
        headline += f" {pair.power()}"
    left_out = f" {spell_count(result.undefined, 'prompt')} left out: no value in one of the two." * bool(
        result.undefined
    )
    return Answer(
        headline,
        f"Difference in {metric.label} ({metric.name}): {pair.numbers()} {names[primary.against]} against "
        f"{names[primary.baseline]}: {pair.counts()}.{left_out}",
    )
