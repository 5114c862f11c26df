"""The numbers of a study: every setting's mean in every metric, and its difference from the baseline."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...core.atomic import atomic_path
from ...metrics.metric import SHARE, Metric
from ...metrics.statistics import Comparison, Interval, by_prompt, holm, metric_interval
from ..answer import Answer, Pairing
from ..plan import Plan
from ..results import Results
from ..words import list_choices, tell_apart

COLUMNS = (
    "setting", "metric", "unit", "better", "mean", "low", "high", "undefined", "difference", "difference_low",
    "difference_high", "p_uncorrected", "p_corrected", "d_z", "improves", "pairs", "primary", "verdict", "in_words",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One setting in one metric."""

    setting: str
    metric: Metric
    mean: Interval
    """Mean over prompts."""
    undefined: float
    """The share of clips without a value."""
    clips: int
    """How many clips there are, with and without a value."""
    pairing: Pairing | None
    """Setting against the baseline; None for the baseline, or if fewer than two prompts have both values."""
    p: float
    """p value of the comparison. All but the primary one are adjusted together by Holm's method."""
    comparisons: int
    """For how many comparisons p is adjusted; 1 for the primary one."""
    primary: bool
    """Whether this is the study's primary contrast."""

    @property
    def comparison(self) -> Comparison | None:
        """The comparison with the baseline."""
        return self.pairing.comparison if self.pairing else None

    @property
    def improves(self) -> float:
        """The share of prompts on which the setting is better; NaN for a metric that only describes."""
        return self.comparison.improves.value if self.comparison and self.metric.better else math.nan

    def counted(self, seeds: int) -> str:
        """How many clips have a value, or have none, in words; empty if all have one. ``seeds``: clips of a prompt."""
        missing = round(self.undefined * self.clips)
        if not missing:
            return ""
        what = "prompts" if seeds == 1 else "clips"
        if self.metric.counts_undefined:
            return f"{missing} of {self.clips} {what} undefined"
        return f"{self.clips - missing} of {self.clips} {what}"

    @property
    def verdict(self) -> str:
        """How the setting differs from the baseline, as ``Pairing.verdict`` says it; empty without a comparison."""
        return self.pairing.verdict(self.p) if self.pairing else ""

    @property
    def differs(self) -> bool:
        """Whether any prompt has another value than in the baseline."""
        return self.pairing is not None and self.pairing.differs


def summarise(plan: Plan, found: Results) -> list[Row]:
    """A row for every setting and metric, ordered by setting. For p values see ``Row.p``."""
    baseline = plan.primary.baseline
    rows = []
    for setting, values in found.items():
        for name, metric in plan.metrics.items():
            pairing = None if setting == baseline else Pairing.of(metric, found[baseline][name], values[name])
            p = pairing.comparison.p if pairing else math.nan
            primary = (setting, name) == (plan.primary.against, plan.primary.metric)
            undefined, clips = float(np.isnan(values[name]).mean()), np.size(values[name])
            mean = metric_interval(values[name], share=metric.unit == SHARE)
            rows.append(Row(setting, metric, mean, undefined, clips, pairing, p, 1, primary))
    # Holm's correction over all comparisons but the primary one
    family = [number for number, row in enumerate(rows) if row.pairing is not None and not row.primary]
    for number, p in zip(family, holm([rows[number].p for number in family]) if family else (), strict=True):
        rows[number] = replace(rows[number], p=float(p), comparisons=len(family))
    return rows


def write_summary(plan: Plan, rows: Sequence[Row], answer: Answer, path: Path) -> None:
    """Write summary.csv: a row for every setting and metric. The last column says the comparison in words."""
    choices = list_choices(plan.settings)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            c = row.comparison
            # Where no prompt differs there is nothing to estimate an interval from.
            ends = (c.difference.low, c.difference.high) if c and row.differs else (math.nan, math.nan)
            compared = [c.difference.value, *ends, c.p, row.p, c.d_z, row.improves] if c else []
            numbers = [f"{value:.6g}" for value in (row.mean.value, row.mean.low, row.mean.high, row.undefined)]
            others = [f"{value:.6g}" for value in compared] or [""] * 7
            pairs = c.pairs if c else ""
            both = tell_apart(choices[plan.primary.baseline], choices[row.setting])
            sentence = row.pairing.sentence(both, row.p, row.comparisons) if row.pairing else ""
            writer.writerow(
                [row.setting, row.metric.name, row.metric.unit, row.metric.better or "", *numbers, *others, pairs,
                 int(row.primary), row.verdict, answer.headline if row.primary else sentence]
            )  # fmt: skip


def extremes(plan: Plan, found: Results, count: int = 4) -> tuple[list[int], list[int]]:
    """The numbers of the prompts with the largest gains and losses of ``against`` in the primary metric, largest first.

    A prompt on which both settings are equal, or cannot be compared, is neither. Prompts of equal gain, which are
    common if the metric is a share, are ordered by the mean of the other metrics' gains, each divided by its standard
    deviation.
    """
    metric = plan.metrics[plan.primary.metric]
    a, b = found[plan.primary.baseline], found[plan.primary.against]
    sign = -1 if metric.better == "lower" else 1
    main = sign * _changes(a, b, metric.name)
    others = []
    for name, other in plan.metrics.items():
        if other.better is not None and name != metric.name:
            gain = _changes(a, b, name) * (1 if other.better == "higher" else -1)
            others.append(gain / gain.std() if gain.std() > 0 else gain)
    second = np.mean(others, axis=0) if others else np.zeros(len(main))
    order = np.lexsort((-second, -main)).tolist()
    gains = [p for p in order if main[p] > 0][:count]
    losses = [p for p in reversed(order) if main[p] < 0][:count]
    return gains, losses


def _changes(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
    """The mean over each prompt's seeds of b minus a (prompts,), as they are compared; 0 where nothing is defined."""
    return np.nan_to_num(by_prompt(b[metric] - a[metric]))
