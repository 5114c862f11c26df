"""Guidance rules: how the predictions of a step become one.

A rule is given the guided channels only: its norms, means and standard deviations are per sample and over those. A rule
names the parameterisation in which it works; ``Guidance.combine`` converts. At its neutral setting, which the docstring
names, each rule is plain classifier-free guidance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from ..core.broadcasting import per_sample
from ..core.errors import InputError, nearest, quoted, setting

if TYPE_CHECKING:  # a rule's settings are checked without torch, which takes seconds to import
    from torch import Tensor

    from ..diffusion import NoiseLevel

Scale: TypeAlias = "float | Tensor"
MOST_LEVELS = 16
"""How often fdg halves a frame at most: no latent is larger than 2**16."""
Space = Literal["own", "eps", "x0", "v", "flow", "velocity"]


@dataclass(frozen=True)
class Branches:
    """What a rule sees of a step; every tensor is (B, C_guided, ...)."""

    cond: Tensor
    """The conditional prediction."""
    uncond: Tensor
    """The unconditional prediction."""
    negative: Tensor | None
    """The negative prompt's prediction, for a rule that ``needs_negative``."""
    level: NoiseLevel
    """The level of this step. Its ``next`` is None where a sampler chooses its own times."""
    kept: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    """What the rule kept from the step before (``Rule.keeps``); empty at the first step of a run."""


@dataclass(frozen=True)
class Rule(ABC):
    """``rule(branches, scale)`` gives the guided prediction, (B, C_guided, ...).

    ``scale`` is a float, or (C_guided, 1, ...) where channels have different scales.
    """

    name: ClassVar[str]
    space: ClassVar[Space] = "own"
    """The parameterisation of inputs and output. "own" is what the network predicts. "velocity" is that of the path: v
    where alpha^2 + sigma^2 = 1, flow where alpha + sigma = 1."""
    by_scale_one: ClassVar[bool] = True
    """True if scale 1 gives the conditional prediction. Channels of scale 1 are then left as they are."""
    needs_negative: ClassVar[bool] = False
    """Whether the negative prompt is a branch of its own."""

    @abstractmethod
    def __call__(self, branches: Branches, scale: Scale) -> Tensor: ...

    def keeps(self, branches: Branches) -> Mapping[str, Tensor]:
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
        if not (math.isfinite(number) and low <= number <= high):
            shown = f"{number:g}" if isinstance(value, Real) else f"{value!r:.40}"
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise InputError(f"{setting('guidance')} {self.name}: {name} is {shown}: give a number {limits}")


@dataclass(frozen=True)
class CFG(Rule):
    """uncond + s (cond - uncond): classifier-free guidance (Ho & Salimans 2207.12598, eq. 6 with s = 1 + w)."""

    name = "cfg"

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        return branches.uncond + scale * (branches.cond - branches.uncond)


@dataclass(frozen=True)
class Rescale(Rule):
    """Plain guidance, brought back towards the conditional prediction's standard deviation (Lin et al. 2305.08891, sec.
    3.4): phi std(cond) / std(guided) guided + (1 - phi) guided. It reduces overexposure. Neutral: phi 0.

    The standard deviation is over the guided channels, so that unguided ones do not change. diffusers takes it over all
    channels.
    """

    name = "rescale"
    phi: float = 0.7

    def __post_init__(self) -> None:
        self._require("phi", 0, 1)

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        import torch

        guided = cfg(branches, scale)
        wanted, found = (per_sample(part.flatten(1).std(1), guided) for part in (branches.cond, guided))
        ratio = torch.where(found > 0, wanted / found, 1)
        return guided * (self.phi * ratio + 1 - self.phi)


@dataclass(frozen=True)
class APG(Rule):
    """Adaptive projected guidance (Sadat et al. 2410.02416, algorithm 1). Neutral: eta 1, norm_limit 0, momentum 0.

    The update is a running sum over the steps (``momentum``; a negative one pushes away from earlier updates). Its norm
    is limited. Its part along the conditional x_0, which saturates colours, is weighted by ``eta``.

    ``norm_limit`` is the paper's r, an L2 norm over one sample's guided channels: 15 on the 65,536 elements of SDXL. 0
    sets no limit.
    """

    name = "apg"
    space = "x0"
    eta: float = 0.0
    norm_limit: float = 15.0
    momentum: float = -0.5

    def __post_init__(self) -> None:
        self._require("eta", 0)
        self._require("norm_limit", 0)
        self._require("momentum", -1, 1)

    def _update(self, branches: Branches) -> Tensor:
        """The running sum of cond - uncond."""
        update = branches.cond - branches.uncond
        if not self.momentum:
            return update
        return update + self.momentum * branches.kept.get("update", update.new_zeros(()))

    def keeps(self, branches: Branches) -> Mapping[str, Tensor]:
        return {"update": self._update(branches)} if self.momentum else {}

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        update = self._update(branches)
        if self.norm_limit:
            update = update * (self.norm_limit / _norm(update).clamp_min(1e-12)).clamp(max=1)
        along = _projected(update, branches.cond)
        return branches.cond + (scale - 1) * (update - along + self.eta * along)


@dataclass(frozen=True)
class CFGZero(Rule):
    """CFG-Zero* (Fan et al. 2503.18886, algorithm 1). Neutral: project 0 and zeroed 0.

    The unconditional velocity is scaled by its optimal factor <cond, uncond> / ||uncond||^2; the factor used is
    1 + project (optimum - 1). During the first fraction ``zeroed`` of sampling the velocity is zero.

    On rectified flow the velocity is the paper's. On a variance-preserving schedule it is v of Salimans & Ho
    (2202.00512). At pure noise v is -x_0, so a velocity of zero predicts x_0 = 0, the mean of latents.
    """

    name = "cfg-zero"
    space = "velocity"
    project: float = 1.0
    zeroed: float = 0.04

    def __post_init__(self) -> None:
        self._require("project", 0, 1)
        self._require("zeroed", 0, 1)

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        if branches.level.progress < self.zeroed:
            return branches.cond.new_zeros(branches.cond.shape)
        optimum = _dot(branches.cond, branches.uncond) / _dot(branches.uncond, branches.uncond).clamp_min(1e-12)
        uncond = branches.uncond * (1 + self.project * (optimum - 1))
        return uncond + scale * (branches.cond - uncond)


@dataclass(frozen=True)
class CFGPlusPlus(Rule):
    """CFG++ (Chung et al. 2406.08070, algorithm 2): x_0 is guided by a scale s in [0, 1], and the noise that is put
    back is the unconditional prediction. Its sampler is deterministic DDIM.

    With alpha, sigma of this level, alpha', sigma' of the next one and A = alpha' / alpha, its step is DDIM's under
    plain guidance of scale s A sigma / (A sigma - sigma'). That is what is computed: plain CFG of a scale that falls
    during sampling and ends at s. There is no neutral setting.
    """

    name = "cfg++"
    by_scale_one = False

    def check(self, scales: Sequence[float]) -> None:
        if any(scale > 1 for scale in scales):
            raise InputError(
                f"{setting('guidance')} cfg++ takes a {setting('cfg_scale')} from 0 to 1, such as 0.6: "
                f"{max(scales):g} was given"
            )

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        level, after = branches.level, branches.level.next
        if after is None:
            raise InputError(f"{setting('guidance')} cfg++ needs {setting('sampler')} ddim with {setting('eta')} 0")
        # numerator and denominator are multiplied by alpha, which is 0 where rectified flow begins
        carried = float(after.alpha) * float(level.sigma)
        return cfg(branches, scale * (carried / (carried - float(level.alpha) * float(after.sigma))))


@dataclass(frozen=True)
class FrequencyDecoupled(Rule):
    """Frequency-decoupled guidance (Sadat et al. 2506.19713): low spatial frequencies are guided less than high ones.
    Neutral: low 1.

    Low frequencies set colour and layout, and saturate. Their scale is 1 + low (s - 1). They are what is left of a
    frame that is halved ``levels`` times: one split of the paper's Laplacian pyramid, with bilinear filters.
    """

    name = "fdg"
    low: float = 0.5
    levels: int = 1

    def __post_init__(self) -> None:
        self._require("low", 0)
        self._require("levels", 1, MOST_LEVELS)

    def check_size(self, height: int, width: int) -> None:
        if min(height, width) < 2**self.levels:
            raise InputError(
                f"{setting('guidance')} fdg: latents of {height}x{width} cannot be halved {self.levels} times: give "
                "fewer levels"
            )

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        from torch.nn import functional

        update = branches.cond - branches.uncond
        if update.ndim < 4:
            raise InputError(f"{setting('guidance')} fdg: latents {tuple(update.shape)} have no height and width")
        planes = update.flatten(0, -3)[:, None]
        self.check_size(planes.shape[-2], planes.shape[-1])
        half = 2**self.levels
        smaller = functional.adaptive_avg_pool2d(planes, (planes.shape[-2] // half, planes.shape[-1] // half))
        coarse = functional.interpolate(smaller, planes.shape[-2:], mode="bilinear").view_as(update)
        return branches.cond + (scale - 1) * (update + (self.low - 1) * coarse)


@dataclass(frozen=True)
class PerpendicularNegative(Rule):
    """Perp-Neg (Armandpour et al. 2304.04968, eq. 8). Neutral: weight 0.

    Of the negative prompt, only the part perpendicular to the prompt is subtracted:
    uncond + s ((cond - uncond) - weight (negative - uncond)_perpendicular). The negative prompt does not take the null
    caption's place: three branches run.
    """

    name = "perp-neg"
    needs_negative = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._require("weight", 0)

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        if branches.negative is None:
            raise InputError(f"{setting('guidance')} perp-neg needs a negative prompt")
        wanted, unwanted = branches.cond - branches.uncond, branches.negative - branches.uncond
        return branches.uncond + scale * (wanted - self.weight * (unwanted - _projected(unwanted, wanted)))


cfg = CFG()
RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (CFG, Rescale, APG, CFGZero, CFGPlusPlus, FrequencyDecoupled, PerpendicularNegative)
}  # fmt: skip


def parse_rule(text: str) -> Rule:
    """A rule from its name, with settings where they are not its defaults: ``"apg:momentum=0,norm_limit=2.5"``.

    Raises:
        InputError: the rule or a setting does not exist, or a value is out of range.
    """
    name, _, rest = text.partition(":")
    if name.replace(".", "", 1).isdecimal():
        raise InputError(
            f"{setting('guidance')} names a rule, and {quoted(text)} is a number: give it as {setting('cfg_scale')}"
        )
    if name not in RULES:
        raise InputError(f"{setting('guidance')} rule {name!r} does not exist{nearest(name, RULES)}")
    rule = RULES[name]()
    settings = {option.name: option.type for option in fields(rule)}
    given: dict[str, float] = {}
    for part in rest.split(",") if rest else ():
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in settings:
            known = f"{name} has {', '.join(settings)}" if settings else f"{name} has no settings"
            raise InputError(f"{setting('guidance')} {name}: {option!r} is not a setting: {known}")
        try:
            if not equals or option in given:
                raise ValueError
            given[option] = int(value) if settings[option] == "int" else float(value)
        except ValueError:
            raise InputError(
                f"{setting('guidance')} {name}: {part!r} cannot be read: give {option}=NUMBER, once"
            ) from None
    return RULES[name](**given)


def rule_text(rule: Rule) -> str:
    """The canonical form of a rule, with all its settings; ``parse_rule`` reads it back."""
    settings = [f"{s.name}={getattr(rule, s.name)!r}".removesuffix(".0") for s in fields(rule)]
    return rule.name + (":" + ",".join(settings) if settings else "")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, shaped to multiply them."""
    return per_sample((a * b).flatten(1).sum(1), a)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _projected(a: Tensor, onto: Tensor) -> Tensor:
    """The part of each sample of ``a`` that lies along that of ``onto``."""
    return onto * (_dot(a, onto) / _dot(onto, onto).clamp_min(1e-12))
