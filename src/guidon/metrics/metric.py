"""The interfaces of evaluation: what a metric is, and what a bench is.

A bench is one domain of videos. It has metrics and a function that measures clips. A bench that can make its own clips
also has captions with exact frames. Studies and analyses use a domain only through its bench.
``guidon.metrics.bench`` lists the benches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..core.errors import InputError, nearest, setting
from ..core.reading import Limit
from .choice import Weights

EVALUATION_SEED = 1  # seed of the captions for reported results; training uses other seeds
TUNING_SEED = 1001  # seed of the captions on which scales are chosen; no result is reported on them
FORGIVEN = 0.02  # loss of a share that the search for scales allows
MARGIN = 0.05  # loss of a share that held-out prompts must exclude
SHARE = "share"  # unit of a fraction; tables show it in per cent
COSINE = "cosine"  # unit of a cosine between features
CAPTIONS = Limit("GUIDON_MAX_CAPTIONS", 1_000_000, "captions")
"""The captions that are made for one study or one measurement."""
UNSAID = "the caption does not say it"

Values = dict[str, np.ndarray]  # metric -> (N,), one value a clip, NaN where undefined


@dataclass(frozen=True)
class Metric:
    """The definition of one measured number."""

    name: str
    kind: Literal["alignment", "temporal", "quality"]
    unit: str
    range: tuple[float, float]
    better: Literal["higher", "lower"] | None
    """The direction in which the metric improves; None for a metric that only describes."""
    meaning: str
    """How the value is defined, exactly."""
    undefined: str = "never"
    """When the value is NaN."""
    label: str = field(kw_only=True)
    """A short name in plain words, for headings."""
    words: str = field(kw_only=True)
    """What the value says, in plain words. For a share, words that follow the number: "of frames show no object"."""

    @property
    def counts_undefined(self) -> bool:
        """Whether tables show how often the value is undefined. False where only the caption decides that."""
        return self.undefined != UNSAID


def named(*metrics: Metric) -> dict[str, Metric]:
    """Metrics by name, in the given order."""
    return {metric.name: metric for metric in metrics}


CLIPPED = Metric(
    "clipped", "quality", SHARE, (0, 1), "lower", "values that are exactly 0 or 255",
    label="clipped values", words="of colour values are at their lowest or highest, where detail is lost",
)  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """Captioned clips that a bench makes by itself, with exact frames: clip ``index`` of a split and a seed."""

    splits: tuple[str, ...]
    default_split: str
    """The split that is used if the user names none."""
    caption: Callable[[str, int, int], str]
    """(split, seed, index) -> caption."""
    frames: Callable[[str, int, int], np.ndarray]
    """(split, seed, index) -> float32 RGB in [0, 1], (time, height, width, 3)."""
    over_seeds: Callable[[str, int, int, np.ndarray], dict[str, float]]
    """(split, seed, index, uint8 samples (S, T, H, W, 3) of its caption) -> statistics over the samples, by name."""


@dataclass(frozen=True)
class Goal:
    """The goal of tuning guidance scales."""

    keep: str
    """The metric that must not fall."""
    lower: Mapping[str, Callable[[Values], np.ndarray]]
    """Quantities to lower: name -> a function from the values of all metrics to its values (N,)."""
    forgiven: float = FORGIVEN
    """Loss of the kept metric that the search allows."""
    margin: float = MARGIN
    """The interval on held-out prompts must exclude a larger loss of the kept metric."""


def any_prompt(prompt: str) -> None:
    """The check of a bench that can measure every prompt: it refuses nothing."""


@dataclass(frozen=True)
class Bench:
    """One domain of evaluation."""

    name: str
    metrics: Mapping[str, Metric]
    measure: Callable[[np.ndarray, Sequence[str]], Values]
    """(uint8 clips (N, T, H, W, 3), their N captions) -> (N,) for every metric. Refuses clips of another shape."""
    shown: tuple[str, ...]
    """Metrics that tables show, in order."""
    primary: str
    """The metric of the primary contrast in a study that nobody wrote by hand; see ``primary_for``."""
    matched: tuple[str, ...]
    """Metrics that `guidon match` compares if the user names none."""
    guarded: tuple[str, ...] = ()
    """Metrics in which fast settings must be no worse; empty for all that are shown and have a better direction."""
    margins: Mapping[str, float] = field(default_factory=dict[str, float])
    """By guarded metric, a loss that is too small to be seen, in its unit."""
    fronts: tuple[tuple[str, str], ...] = ()
    """Pairs of metrics whose trade-off a report plots."""
    watched: tuple[str, ...] = ()
    """Metrics that a training run logs when it measures its model."""
    check_prompt: Callable[[str], None] = any_prompt
    """Raises InputError for a prompt that the bench cannot measure."""
    examples: Examples | None = None
    """The bench's own captions and clips; None if the user must give prompts."""
    goal: Goal | None = None
    """The goal of `guidon tune`; None if scales cannot be tuned on this bench."""
    weights: Mapping[str, Weights] = field(default_factory=dict[str, Weights])
    """The weights with which its learned parts measure, by part."""

    def for_images(self) -> tuple[str, ...]:
        """The shown metrics that a clip of one frame has, too."""
        return tuple(name for name in self.shown if self.metrics[name].kind != "temporal")

    def primary_for(self, is_image: bool) -> str:
        """``primary``, or for clips of one frame the first metric that they have, where they lack that one."""
        return self.for_images()[0] if is_image and self.primary not in self.for_images() else self.primary

    def matched_for(self, is_image: bool) -> tuple[str, ...]:
        """``matched``, or those of them that a clip of one frame has."""
        return tuple(name for name in self.matched if not (is_image and self.metrics[name].kind == "temporal"))

    def find_metric(self, name: str) -> Metric:
        """The metric of that name. Raises InputError, with the nearest name, if there is none."""
        if name not in self.metrics:
            labels = {metric.label: metric.name for metric in self.metrics.values()}
            if name in labels:
                raise InputError(f"{name!r} is the metric's name in reports: give {labels[name]!r}")
            from .learned import METRICS

            if part := next((part for part, own in METRICS.items() if name in own), None):
                raise InputError(
                    f"the bench {self.name!r} has no metric {name!r}, which is learned: in a study give its weights, "
                    f"as in bench: {{{part}: {'FILE' if part == 'aesthetic' else 'FOLDER'}}}"
                )
            raise InputError(f"the bench {self.name!r} has no metric {name!r}{nearest(name, self.metrics)}")
        return self.metrics[name]

    def own_examples(self, split: str | None = None) -> tuple[Examples, str]:
        """The captioned clips of the bench, and the name of a split: the given one, or the default.

        Raises:
            InputError: the bench has no captions of its own, or no such split.
        """
        if self.examples is None:
            raise InputError(
                f"the bench {self.name!r} has no captions with exact truth: give prompts as texts"
                f", with prompts: [TEXT, ...] in a study, or {setting('prompts_file')}"
            )
        split = split or self.examples.default_split
        if split not in self.examples.splits:
            raise InputError(f"split {split!r} does not exist; valid: {', '.join(self.examples.splits)}")
        return self.examples, split

    def captions(self, split: str | None, seed: int, count: int) -> tuple[str, ...]:
        """The first ``count`` captions of a split (None: the default one).

        Raises:
            InputError: there are more than ``CAPTIONS`` allows, the bench has none of its own, or no such split.
        """
        examples, split = self.own_examples(split)
        if count > CAPTIONS.value:
            raise InputError(
                f"{count:,} captions are asked for, the limit is {CAPTIONS.value:,}: ask for fewer, or set the "
                f"environment variable {CAPTIONS.variable} to a higher number"
            )
        return tuple(examples.caption(split, seed, index) for index in range(count))
