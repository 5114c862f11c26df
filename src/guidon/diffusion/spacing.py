"""Where a run spends its steps: a spacing of timesteps, from noise to data. It needs no torch.

A spacing gives fractions of the range of timesteps, falling from 1, the most noise, to 0, the least. Fractions mean
the same for a discrete schedule and for a rectified flow, whose levels follow from them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..core.errors import InputError, nearest, setting
from ..core.numbers import all_digits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_POWER = 20.0
"""The largest power of a spacing: half of the steps then lie in the last millionth of the timesteps."""


@dataclass(frozen=True)
class Spacing(ABC):
    """Places the steps of a run."""

    name: ClassVar[str]
    by_noise: ClassVar[bool] = False
    """Whether steps are placed by how much noise there is, wherever its timestep lies."""

    @property
    def text(self) -> str:
        """The form in which it is written to JSON; ``parse_spacing`` reads it back."""
        return self.name

    @abstractmethod
    def fractions(self, count: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        """So many fractions of the range of timesteps, falling from 1 to 0; of one step, 1.

        Args:
            count: how many, at least 1.
            noise: log(sigma / alpha) at evenly spaced timesteps, from the least noise to the most: increasing.
        """

    def with_end(self, steps: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fractions at which so many steps begin, and behind them the one at which the last step ends."""
        return self.fractions(steps + 1, noise)


def _falling(count: int) -> NDArray[np.float64]:
    """Evenly spaced from 1 to 0."""
    import numpy as np

    return np.linspace(1.0, 0.0, count)


@dataclass(frozen=True)
class Power(Spacing):
    """f = u^power for evenly spaced u: above 1 more steps have little noise, below 1 more have much.

    Power 1 is the uniform spacing; power 2 is the quadratic one of DDIM (Song et al. 2010.02502, app. D.2).
    """

    name = "power"
    power: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and 1 / MOST_POWER <= self.power <= MOST_POWER):
            raise InputError(
                f"{setting('spacing')}: the power {self.power:g} is not valid: give a number from {1 / MOST_POWER:g} "
                f"to {MOST_POWER:g}, such as 1.5"
            )

    @property
    def text(self) -> str:
        return f"{self.name}:{all_digits(self.power)}" if self.power != 2 else "quadratic"

    def fractions(self, count: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        return _falling(count) ** self.power


@dataclass(frozen=True)
class Karras(Spacing):
    """Evenly spaced in (sigma / alpha)^(1 / rho) (Karras et al. 2206.00364, eq. 5, rho 7)."""

    name = "karras"
    by_noise = True
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and 0 < self.rho <= 1000):
            raise InputError(
                f"{setting('spacing')}: karras has the exponent {self.rho:g}: give a number above 0 and up to 1000, "
                "such as 7"
            )

    @property
    def text(self) -> str:
        return self.name if self.rho == 7 else f"{self.name}:{all_digits(self.rho)}"

    def fractions(self, count: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        low, high = (math.exp(float(end) / self.rho) for end in (noise[0], noise[-1]))
        return _at_noise(self.rho * np.log(low + _falling(count) * (high - low)), noise)


@dataclass(frozen=True)
class LogSNR(Spacing):
    """Evenly spaced in log(sigma / alpha), as DPM-Solver's own steps are (Lu et al. 2206.00927, sec. 3.3)."""

    name = "logsnr"
    by_noise = True

    def fractions(self, count: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        return _at_noise(noise[0] + _falling(count) * (noise[-1] - noise[0]), noise)


def _at_noise(wanted: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fractions of the range at which log(sigma / alpha) has these values."""
    import numpy as np

    found = np.interp(wanted, noise, np.linspace(0.0, 1.0, len(noise)))
    found[0] = 1.0  # whatever the rounding
    return found


@dataclass(frozen=True)
class Split(Spacing):
    """A share of the steps below a fraction of the range, the others from there on; evenly spaced on each side.

    It suits a model of two experts, each of which has one side.
    """

    name = "split"
    at: float
    """Where the range is divided, as a fraction of the timesteps: above 0 and below 1."""
    share: float
    """The share of the steps below it, on the side of the data: above 0 and below 1."""

    def __post_init__(self) -> None:
        if not (0 < self.at < 1 and 0 < self.share < 1):
            raise InputError(
                f"{setting('spacing')}: split:{self.at:g},{self.share:g} is not valid: give the fraction of the "
                "timesteps that it divides at, and the share of the steps below it, both above 0 and below 1, such as "
                "split:0.35,0.5"
            )

    @property
    def text(self) -> str:
        return f"{self.name}:{all_digits(self.at, self.share)}"

    def fractions(self, count: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._divided(count, self._below(count))

    def with_end(self, steps: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._divided(steps + 1, self._below(steps) + 1)  # the end is below, and no step begins there

    def _below(self, steps: int) -> int:
        """How many of the steps are below."""
        return min(max(round(self.share * steps), 1), steps - 1)

    def _divided(self, count: int, below: int) -> NDArray[np.float64]:
        import numpy as np

        if count < 2:
            return _falling(count)
        above = 1 - (1 - self.at) * np.arange(count - below) / (count - below)
        return np.concatenate([above, self.at * np.arange(below, 0, -1) / below - self.at / below])


@dataclass(frozen=True)
class Explicit(Spacing):
    """Exactly these timesteps, falling."""

    name = "at"
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not (self.timesteps and falls and math.isfinite(self.timesteps[0]) and self.timesteps[-1] >= 0):
            raise InputError(
                f"{setting('spacing')}: the timesteps {self.text[3:]!r:.80} do not fall from noise to 0: give each "
                "once, the largest first, such as at:999,750,500,250,0"
            )

    @property
    def text(self) -> str:
        return f"{self.name}:{all_digits(*self.timesteps)}"

    def check(self, steps: int, most: float, *, whole: bool = False, above_zero: bool = False) -> None:
        """Refuse timesteps that a run cannot visit.

        Args:
            steps: how many steps the run has.
            most: the largest timestep of the model.
            whole: only whole timesteps will do.
            above_zero: timestep 0 is the data itself.

        Raises:
            InputError: the message says what is expected.
        """
        given, listed = setting("spacing"), self.timesteps
        if len(listed) != steps:
            raise InputError(f"{given} lists {len(listed)} timesteps, {setting('steps')} is {steps}: give as many")
        if listed[0] > most:
            raise InputError(
                f"{given} begins at timestep {listed[0]:g}, the largest of the model is {most:g}: give smaller ones"
            )
        if above_zero and not listed[-1]:
            raise InputError(f"{given} ends at timestep 0, which is the data itself of a rectified flow: leave it out")
        if whole and (other := next((each for each in listed if each != round(each)), None)) is not None:
            raise InputError(
                f"{given} lists timestep {other:g}, and this {setting('sampler')} takes whole ones: round it, or give "
                f"{setting('sampler')} dpm-solver"
            )

    def fractions(self, count: int, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        raise AssertionError("listed timesteps are no fractions")


UNIFORM = Power(1.0)
QUADRATIC = Power(2.0)
_NUMBERS = {
    Power.name: "a power such as power:1.5",
    Karras.name: "an exponent such as karras:7, or karras alone",
    Split.name: "a fraction of the timesteps and a share of the steps such as split:0.35,0.5",
    Explicit.name: "timesteps such as at:999,750,500,250,0",
}
VALID = ("uniform", "quadratic", "karras", "logsnr", "power:P", "karras:RHO", "split:F,SHARE", "at:T,T,...")
"""How a spacing may be written."""
MOST_LISTED = 100_000


def parse_spacing(text: str) -> Spacing:
    """A spacing, as ``VALID`` says it may be written.

    Raises:
        InputError: the spacing does not exist, or its numbers are not valid.
    """
    plain = {"uniform": UNIFORM, "quadratic": QUADRATIC, Karras.name: Karras(), LogSNR.name: LogSNR()}
    if text in plain:
        return plain[text]
    name, _, numbers = text.partition(":")
    if name not in _NUMBERS:
        raise InputError(f"{setting('spacing')} {text[:80]!r} does not exist{nearest(text[:80], VALID)}")
    try:
        values = tuple(float(part) for part in numbers.split(","))
    except ValueError:
        values = ()
    if name == Explicit.name and values and len(values) <= MOST_LISTED:
        return Explicit(values)
    if name == Split.name and len(values) == 2:
        return Split(*values)
    if name in (Power.name, Karras.name) and len(values) == 1:
        return Power(*values) if name == Power.name else Karras(*values)
    raise InputError(f"{setting('spacing')}: {text[:80]!r} cannot be read: give {_NUMBERS[name]}")


def whole_timesteps(fractions: Sequence[float] | NDArray[np.float64], last: int) -> list[int]:
    """Whole timesteps at fractions of 0 to ``last``, increasing, each once.

    Where two fall on one timestep, the other takes the next that is free, so that none is lost.

    Args:
        fractions: falling; at most ``last`` + 1.
        last: the largest timestep.
    """
    kept: list[int] = []
    for fraction in reversed(list(fractions)):
        kept.append(max(round(float(fraction) * last), kept[-1] + 1 if kept else 0))
    for place, most in zip(reversed(range(len(kept))), range(last, -1, -1), strict=False):
        kept[place] = min(kept[place], most)
    return kept
