"""The contracts of evaluation: what a metric is, and what a bench brings so that a domain can be measured.

A bench is one domain: its metrics, how its clips are measured, and, where it can make clips by itself, captions with
exact truth. Studies and analyses use nothing else of a domain. ``guidon.metrics.bench`` lists the benches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.errors import InputError, nearest

EVALUATION_SEED = 1  # of the captions that results are reported on; training draws its clips with other seeds
TUNING_SEED = 1001  # of the captions on which scales are chosen; nothing is reported on them
SHARE = "share"  # the unit of a fraction, which tables show in per cent
UNSAID = "the caption does not say it"

Values = dict[str, np.ndarray]  # metric -> (N,), one value a clip, NaN where undefined


@dataclass(frozen=True)
class Metric:
    """What a number means."""

    name: str
    kind: Literal["alignment", "temporal", "quality"]
    unit: str
    range: tuple[float, float]
    better: Literal["higher", "lower"] | None
    """The direction in which the metric improves; None for a metric that only describes."""
    meaning: str
    undefined: str = "never"
    """When the value is NaN."""

    @property
    def counts_undefined(self) -> bool:
        """Whether tables show how often the value is undefined: not where the caption alone decides it."""
        return self.undefined != UNSAID


def named(*metrics: Metric) -> dict[str, Metric]:
    """Metrics by name, in the given order."""
    return {metric.name: metric for metric in metrics}


CLIPPED = Metric("clipped", "quality", SHARE, (0, 1), "lower", "values that are exactly 0 or 255")


@dataclass(frozen=True)
class Examples:
    """Captioned clips that a bench makes by itself, with exact frames: clip ``index`` of a split and a seed."""

    splits: tuple[str, ...]
    default_split: str
    """The split that is taken where none is named."""
    caption: Callable[[str, int, int], str]
    """(split, seed, index) -> caption."""
    frames: Callable[[str, int, int], np.ndarray]
    """(split, seed, index) -> float32 RGB in [0, 1], (time, height, width, 3)."""
    over_seeds: Callable[[str, int, int, np.ndarray], dict[str, float]]
    """(split, seed, index, uint8 samples (S, T, H, W, 3) of its caption) -> what the samples tell together, by name."""


@dataclass(frozen=True)
class Goal:
    """What tuning of guidance scales aims at."""

    keep: str
    """The metric that must not fall."""
    lower: Mapping[str, Callable[[Values], np.ndarray]]
    """name -> its values (N,) from those of all metrics; each is to be lowered."""


def any_prompt(prompt: str) -> None:
    """Every prompt can be measured."""


@dataclass(frozen=True)
class Bench:
    """One domain of evaluation."""

    name: str
    metrics: Mapping[str, Metric]
    measure: Callable[[np.ndarray, Sequence[str]], Values]
    """(uint8 clips (N, T, H, W, 3), their N captions) -> (N,) for every metric; clips of another form are refused."""
    shown: tuple[str, ...]
    """Metrics that tables show, in order."""
    primary: str
    """The metric of a study's primary contrast where the user names none."""
    matched: tuple[str, ...]
    """Metrics that `guidon match` compares where the user names none."""
    fronts: tuple[tuple[str, str], ...] = ()
    """Pairs of metrics whose trade-off a report plots."""
    watched: tuple[str, ...] = ()
    """Metrics that a training run logs of the models it exports."""
    check_prompt: Callable[[str], None] = any_prompt
    """Raises InputError for a prompt that the bench cannot measure."""
    examples: Examples | None = None
    """Captions with exact truth; None where the user must bring prompts."""
    goal: Goal | None = None
    """None where scales cannot be tuned."""

    def find_metric(self, name: str) -> Metric:
        """The metric of that name; InputError with the nearest one where there is none."""
        if name not in self.metrics:
            raise InputError(f"the metric {name!r} does not exist{nearest(name, self.metrics)}")
        return self.metrics[name]

    def own_examples(self, split: str | None = None) -> tuple[Examples, str]:
        """The captioned clips of the bench, and the name of a split: the given one, or the default.

        Raises:
            InputError: the bench has no captions of its own, or no such split.
        """
        if self.examples is None:
            raise InputError(f"the bench {self.name!r} has no captions with exact truth: give prompts as texts")
        split = split or self.examples.default_split
        if split not in self.examples.splits:
            raise InputError(f"split {split!r} does not exist; valid: {', '.join(self.examples.splits)}")
        return self.examples, split

    def captions(self, split: str | None, seed: int, count: int) -> tuple[str, ...]:
        """The first ``count`` captions of a split (None: the default one). Raises as ``own_examples`` does."""
        examples, split = self.own_examples(split)
        return tuple(examples.caption(split, seed, index) for index in range(count))
