"""When to guide: a weight over the course of sampling. A weight w makes the scale effectively 1 + w (s - 1).

A timing is called as ``timing(progress, number)``. Progress is 0 at pure noise and 1 at the data, whatever the number
of steps (``NoiseLevel.progress``). ``number`` counts the denoiser's calls from 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from ..core.errors import InputError, nearest, setting


@dataclass(frozen=True)
class Timing(ABC):
    """``timing(progress, number)`` -> weight, at least 0."""

    name: ClassVar[str]
    ramps: ClassVar[bool] = False
    """Whether the weight takes values other than 0 and 1."""

    @abstractmethod
    def __call__(self, progress: float, number: int = 0) -> float: ...

    @property
    def text(self) -> str:
        """The form in which it is written to JSON; ``parse_timing`` reads it back."""
        return self.name


@dataclass(frozen=True)
class Constant(Timing):
    """The same scale throughout."""

    name = "constant"
    left_out: bool = field(default=False, compare=False, repr=False)
    """Whether nobody chose it. A model of Guidon then takes its own timing."""

    def __call__(self, progress: float, number: int = 0) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearRamp(Timing):
    """2 p: grows linearly and is 1 on average (Wang et al. 2404.13040, linear)."""

    name = "linear"
    ramps = True

    def __call__(self, progress: float, number: int = 0) -> float:
        return 2 * progress


@dataclass(frozen=True)
class CosineRamp(Timing):
    """1 - cos(pi p): grows as a half cosine and is 1 on average (Wang et al. 2404.13040, cosine)."""

    name = "cosine"
    ramps = True

    def __call__(self, progress: float, number: int = 0) -> float:
        return 1 - math.cos(math.pi * progress)


@dataclass(frozen=True)
class Interval(Timing):
    """Guide only while start <= progress <= end, both in [0, 1] (Kynkäänniemi et al. 2404.07724)."""

    name = "interval"
    start: float
    end: float

    def __post_init__(self) -> None:
        given = f"{setting('timing')}: the interval {self.start:g},{self.end:g}"
        if not (math.isfinite(self.start) and math.isfinite(self.end) and 0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise InputError(f"{given} leaves [0, 1]: 0 is the start of sampling (noise), 1 is its end")
        if self.start >= self.end:
            raise InputError(f"{given} runs backwards or is empty: give the smaller number first")

    def __call__(self, progress: float, number: int = 0) -> float:
        return 1.0 if self.start <= progress <= self.end else 0.0

    @property
    def text(self) -> str:
        return f"{self.name}:" + ",".join(repr(float(end)).removesuffix(".0") for end in (self.start, self.end))


@dataclass(frozen=True)
class Oscillation(Timing):
    """Guide every step before number ``start``, then every second one (Open-Sora 2.0, image guidance, start 10)."""

    name = "oscillation"
    start: int = 10

    def __post_init__(self) -> None:
        if self.start < 0:
            raise InputError(
                f"{setting('timing')}: an oscillation cannot begin at step {self.start}: give a number of at least 0"
            )

    def __call__(self, progress: float, number: int = 0) -> float:
        return 1.0 if number < self.start or number % 2 == 0 else 0.0

    @property
    def text(self) -> str:
        return f"{self.name}:{self.start}"


CONSTANT = Constant()
LEFT_OUT = Constant(left_out=True)
_WITHOUT_NUMBERS: dict[str, Timing] = {timing.name: timing for timing in (CONSTANT, LinearRamp(), CosineRamp())}


def parse_timing(text: str) -> Timing:
    """``"constant"``, ``"linear"``, ``"cosine"``, ``"interval:0.1,0.8"`` or ``"oscillation:10"``.

    Raises:
        InputError: the timing does not exist, or its numbers are not valid.
    """
    if text in _WITHOUT_NUMBERS:
        return _WITHOUT_NUMBERS[text]
    name, _, numbers = text.partition(":")
    if name not in (Interval.name, Oscillation.name):
        valid = [*_WITHOUT_NUMBERS, "interval:A,B", "oscillation:N"]
        raise InputError(f"{setting('timing')} {text!r} does not exist{nearest(text, valid)}")
    try:
        if name == Oscillation.name:
            return Oscillation(int(numbers or "10"))
        start, end = (float(number) for number in numbers.split(","))
        return Interval(start, end)
    except InputError:
        raise
    except ValueError:
        wanted = "two fractions of sampling such as 0.1,0.8" if name == Interval.name else "a step number such as 10"
        raise InputError(f"{setting('timing')}: the {name} {numbers!r} cannot be read: give {wanted}") from None
