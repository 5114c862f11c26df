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
from ..core.numbers import all_digits

MOST_RATE = 10.0
"""The largest rate of an exponential timing: the scale is then multiplied by 22,000."""
ROUNDING = 1e-6
"""How far progress may be off by rounding: a step that lies on the end of an interval belongs to it."""


@dataclass(frozen=True)
class Timing(ABC):
    """``timing(progress, number)`` -> weight, at least 0."""

    name: ClassVar[str]
    ramps: ClassVar[bool] = False
    """Whether the weight takes values other than 0 and 1."""
    of_whole_scale: ClassVar[bool] = False
    """Whether the weight w multiplies the scale itself, w s, and not its distance from 1."""

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
class Exponential(Timing):
    """exp(rate p): the scale grows from s, which is given, to s exp(rate).

    It is C2FG's schedule w(t) = w_0 exp(rate (1 - t / t_max)) (Gao et al. 2603.08155, after a summary of the paper).
    The weight multiplies the scale itself, as there. Scale 1 is no guidance here too, so the authors' w_0 = 1 is given
    as a scale just above it. Their rates are ln 2 for DiT, 1 for SiT, 0.2 for Stable Diffusion 1.5.
    """

    name = "exponential"
    ramps = True
    of_whole_scale = True
    rate: float = math.log(2)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and 0 <= self.rate <= MOST_RATE):
            raise InputError(
                f"{setting('timing')}: the exponential's rate {self.rate:g} is not valid: give a number from 0 to "
                f"{MOST_RATE:g}, such as 0.7"
            )

    def __call__(self, progress: float, number: int = 0) -> float:
        return math.exp(self.rate * progress)

    @property
    def text(self) -> str:
        return f"{self.name}:{all_digits(self.rate)}"


@dataclass(frozen=True)
class Interval(Timing):
    """Guide only while start <= progress <= end, both in [0, 1] and up to rounding (Kynkäänniemi et al. 2404.07724)."""

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
        return 1.0 if self.start - ROUNDING <= progress <= self.end + ROUNDING else 0.0

    @property
    def text(self) -> str:
        return f"{self.name}:{all_digits(self.start, self.end)}"


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


_NUMBERS = {
    Exponential.name: "a rate such as 0.7",
    Interval.name: "two fractions of sampling such as 0.1,0.8",
    Oscillation.name: "a step number such as 10",
}
CONSTANT = Constant()
LEFT_OUT = Constant(left_out=True)
_WITHOUT_NUMBERS: dict[str, Timing] = {timing.name: timing for timing in (CONSTANT, LinearRamp(), CosineRamp())}
VALID = (*_WITHOUT_NUMBERS, "exponential:RATE", "interval:A,B", "oscillation:N")
"""How a timing may be written."""


def parse_timing(text: str) -> Timing:
    """``"constant"``, ``"linear"``, ``"cosine"``, ``"exponential:0.7"``, ``"interval:0.1,0.8"``, ``"oscillation:10"``.

    Raises:
        InputError: the timing does not exist, or its numbers are not valid.
    """
    if text in _WITHOUT_NUMBERS:
        return _WITHOUT_NUMBERS[text]
    name, _, numbers = text.partition(":")
    if name not in _NUMBERS:
        raise InputError(f"{setting('timing')} {text!r} does not exist{nearest(text, VALID)}")
    try:
        if name == Oscillation.name:
            return Oscillation(int(numbers or "10"))
        if name == Exponential.name:
            return Exponential(float(numbers)) if numbers else Exponential()
        start, end = (float(number) for number in numbers.split(","))
        return Interval(start, end)
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{setting('timing')}: the {name} {numbers!r} cannot be read: give {_NUMBERS[name]}") from None
