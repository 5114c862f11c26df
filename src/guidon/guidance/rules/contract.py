"""What a guidance rule is, and what it sees of a step.

A rule is given the guided channels only: its norms, means and standard deviations are per sample and over those. A rule
names the parameterisation in which it works; ``Guidance.combine`` converts. At its neutral setting, which the docstring
names, each rule is plain classifier-free guidance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from ...core.errors import InputError, setting

if TYPE_CHECKING:  # a rule's settings are checked without torch, which takes seconds to import
    from torch import Tensor

    from ...diffusion import NoiseLevel

Scale: TypeAlias = "float | Tensor"
Space = Literal["own", "eps", "x0", "v", "flow", "noise", "velocity"]
Weak = Literal["model", "blocks"]


@dataclass(frozen=True)
class Branches:
    """What a rule sees of a step; every tensor is (B, C_guided, ...)."""

    cond: Tensor
    """The conditional prediction."""
    uncond: Tensor
    """The unconditional prediction; the weak one where the rule does without it (``Rule.needs_uncond``)."""
    negative: Tensor | None
    """The negative prompt's prediction, for a rule that ``needs_negative``."""
    level: NoiseLevel
    """The level of this step. Its ``next`` is None where a sampler chooses its own times."""
    kept: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    """What the rule kept from the step before (``Rule.keeps``); empty at the first step of a run."""
    weak: Tensor | None = None
    """A weaker conditional prediction, for a rule that ``needs_weak``."""
    imageless: Tensor | None = None
    """The unconditional prediction without the image, for a rule that ``needs_imageless``."""
    number: int = 0
    """How often the denoiser was called before in this run."""
    share: float = 0.0
    """The share of the run's steps that lie before this one; its progress where a sampler chooses its own times."""


@dataclass(frozen=True)
class Rule(ABC):
    """``rule(branches, scale)`` gives the guided prediction, (B, C_guided, ...).

    ``scale`` is a float, or (C_guided, 1, ...) where channels have different scales.
    """

    name: ClassVar[str]
    space: ClassVar[Space] = "own"
    """The parameterisation of inputs and output. "own" is what the network predicts. "velocity" is that of the path: v
    where alpha^2 + sigma^2 = 1, flow where alpha + sigma = 1. "noise" points from x_0 to the latents, as the score
    does: eps where alpha^2 + sigma^2 = 1, flow where alpha + sigma = 1. It is what most networks predict."""
    takes_ramps: ClassVar[bool] = True
    """Whether a timing may change the scale during sampling."""
    needs_negative: ClassVar[bool] = False
    """Whether the negative prompt is a branch of its own."""
    weak: ClassVar[Weak | None] = None
    """Where the weak prediction comes from: another "model", or the same network with some "blocks" skipped. None for a
    rule without it."""

    @property
    def needs_weak(self) -> bool:
        """Whether a weaker conditional prediction is a branch too."""
        return self.weak is not None and not self.is_plain

    @property
    def by_scale_one(self) -> bool:
        """Whether scale 1 gives the conditional prediction. Channels of scale 1 are then left as they are."""
        return True

    @property
    def needs_imageless(self) -> bool:
        """Whether the unconditional prediction without the image is a branch too."""
        return False

    @property
    def oscillates(self) -> bool:
        """Whether its scales change at every second call of the network."""
        return False

    @property
    def needs_uncond(self) -> bool:
        """Whether the unconditional branch is looked at."""
        return True

    @property
    def is_plain(self) -> bool:
        """Whether the settings are the neutral ones. Plain guidance is then computed in the rule's place."""
        return False

    @abstractmethod
    def __call__(self, branches: Branches, scale: Scale) -> Tensor: ...

    def keeps(self, branches: Branches, scale: Scale) -> Mapping[str, Tensor]:
        """What the next step of the run is to see as ``branches.kept``."""
        return {}

    def check(self, scales: Sequence[float]) -> None:
        """Refuse scales that the rule cannot take. Most rules take any.

        Raises:
            InputError: a scale is out of the rule's range.
        """
        return

    def check_size(self, height: int, width: int) -> None:
        """Refuse latents that the rule cannot take. Most rules take any.

        Raises:
            InputError: they are too small.
        """
        return

    def _require(self, name: str, low: float, high: float = math.inf) -> None:
        value: object = getattr(self, name)
        try:
            number = float(value) if isinstance(value, Real) else math.nan
        except OverflowError:  # a whole number that no float holds
            number = math.inf
        whole = isinstance(getattr(type(self), name), int)  # as its default is
        if not (math.isfinite(number) and low <= number <= high) or (whole and not isinstance(value, int)):
            shown = f"{number:g}" if isinstance(value, Real) else f"{value!r:.40}"
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            kind = "whole number" if whole else "number"
            raise InputError(f"{setting('guidance')} {self.name}: {name} is {shown}: give a {kind} {limits}")
