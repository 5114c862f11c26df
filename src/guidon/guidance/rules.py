"""Guidance rules: how the two predictions of a step become one.

A rule is told only of the channels that are guided: its norms, means and standard deviations are per sample and over
those. It says in which space it works ("own" is the network's own prediction), and the denoiser converts. Each gives
plain classifier-free guidance at its neutral setting, which its docstring names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..core.errors import InputError, nearest

Scale = float | Tensor
Space = Literal["own", "eps", "x0", "v"]


@dataclass(frozen=True)
class Branches:
    """What a rule sees of a step, every tensor (B, C_guided, ...).

    Attributes:
        cond, uncond: the two predictions.
        negative: the negative prompt's prediction, for a rule that ``needs_negative``.
        progress: 0 at pure noise, 1 at the data.
        signal, signal_before: alphas_cumprod of this step and of the next one to be visited, which is nearer to the
            data; the latter is None where a sampler chooses its own times.
        memory: what a rule keeps from step to step of one run.
    """

    cond: Tensor
    uncond: Tensor
    negative: Tensor | None = None
    progress: float = 0.0
    signal: float = 1.0
    signal_before: float | None = None
    memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class Rule(ABC):
    """``rule(branches, scale)`` -> guided, (B, C_guided, ...); scale is a float, or (C_guided, 1, ...) by channel.

    ``space`` is of all it is given and gives. ``by_scale_one`` says that a channel of scale 1 is the conditional
    prediction, so that it need not be computed; ``needs_negative``, that a negative prompt is a branch of its own.
    """

    name: ClassVar[str]
    space: ClassVar[Space] = "own"
    by_scale_one: ClassVar[bool] = True
    needs_negative: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, branches: Branches, scale: Scale) -> Tensor: ...

    def check(self, scales: Sequence[float]) -> None:
        """Refuse scales of the guided channels that the rule cannot take; most take any."""
        return

    def _require(self, name: str, low: float, high: float = math.inf) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and low <= value <= high):
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise InputError(f"guidance {self.name}: {name} is {value:g}: give a number {limits}")


@dataclass(frozen=True)
class CFG(Rule):
    """uncond + s (cond - uncond): classifier-free guidance (Ho & Salimans 2207.12598, eq. 6 with s = 1 + w)."""

    name = "cfg"

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        return branches.uncond + scale * (branches.cond - branches.uncond)


@dataclass(frozen=True)
class Rescale(Rule):
    """Guided, then brought back towards the conditional prediction's standard deviation (Lin et al. 2305.08891, sec.
    3.4): phi std(cond) / std(guided) guided + (1 - phi) guided. Against overexposure. Neutral: phi 0.

    The standard deviation is over the guided channels, so that unguided ones do not change; diffusers takes it over
    all of them.
    """

    name = "rescale"
    phi: float = 0.7

    def __post_init__(self) -> None:
        self._require("phi", 0, 1)

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        guided = cfg(branches, scale)
        wanted, found = (_over_sample(part.flatten(1).std(1), guided) for part in (branches.cond, guided))
        ratio = torch.where(found > 0, wanted / found, 1)
        return guided * (self.phi * ratio + 1 - self.phi)


@dataclass(frozen=True)
class APG(Rule):
    """Adaptive projected guidance (Sadat et al. 2410.02416, algorithm 1): the update is averaged with the steps before
    (``momentum``, negative: it pushes away from them), its norm limited, and its part along the conditional x_0, which
    saturates, weighted by ``eta``. Neutral: eta 1, norm_limit 0 (none), momentum 0.

    ``norm_limit`` is the paper's r, an L2 norm over one sample's guided channels: 15 on the 65,536 elements of SDXL.
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

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        update = branches.cond - branches.uncond
        if self.momentum:
            update = update + self.momentum * branches.memory.get("update", torch.zeros_like(update))
            branches.memory["update"] = update
        if self.norm_limit:
            update = update * (self.norm_limit / _norm(update).clamp_min(1e-12)).clamp(max=1)
        along = _projected(update, branches.cond)
        return branches.cond + (scale - 1) * (update - along + self.eta * along)


@dataclass(frozen=True)
class CFGZero(Rule):
    """CFG-Zero* (Fan et al. 2503.18886, algorithm 1): the unconditional velocity is scaled by its optimal factor
    <cond, uncond> / ||uncond||^2, and during the first ``zeroed`` of sampling the velocity is zero.
    Neutral: project 0 (the factor is 1 + project (optimum - 1)) and zeroed 0.

    Made for flow matching; here the velocity is v of Salimans & Ho (2202.00512), which is zero where x_t is all noise
    and the data's mean is predicted.
    """

    name = "cfg-zero"
    space = "v"
    project: float = 1.0
    zeroed: float = 0.04

    def __post_init__(self) -> None:
        self._require("project", 0, 1)
        self._require("zeroed", 0, 1)

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        if branches.progress < self.zeroed:
            return torch.zeros_like(branches.cond)
        optimum = _dot(branches.cond, branches.uncond) / _dot(branches.uncond, branches.uncond).clamp_min(1e-12)
        uncond = branches.uncond * (1 + self.project * (optimum - 1))
        return uncond + scale * (branches.cond - uncond)


@dataclass(frozen=True)
class CFGPlusPlus(Rule):
    """CFG++ (Chung et al. 2406.08070, algorithm 2): x_0 is guided by a scale within [0, 1], and noise is put back by
    the unconditional prediction. Its sampler is deterministic DDIM.

    With A = sqrt(signal_before / signal), n = sqrt(1 - signal) and n' = sqrt(1 - signal_before) its step is DDIM's
    under plain guidance of scale s A n / (A n - n'): that is what is computed. It has no neutral setting; it is plain
    CFG of a scale that falls during sampling and ends at s.
    """

    name = "cfg++"
    by_scale_one = False

    def check(self, scales: Sequence[float]) -> None:
        if any(scale > 1 for scale in scales):
            raise InputError(f"guidance cfg++ takes a cfg_scale from 0 to 1, such as 0.6: {max(scales):g} was given")

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        if branches.signal_before is None:
            raise InputError("guidance cfg++ has a sampler of its own: give the sampler ddim, with eta 0")
        carried = math.sqrt(branches.signal_before / branches.signal) * math.sqrt(1 - branches.signal)
        return cfg(branches, scale * (carried / (carried - math.sqrt(1 - branches.signal_before))))


@dataclass(frozen=True)
class FrequencyDecoupled(Rule):
    """Frequency-decoupled guidance (Sadat et al. 2506.19713): low spatial frequencies, which set colour and layout and
    saturate, are guided less than high ones: their scale is 1 + low (s - 1). Neutral: low 1.

    Low frequencies are those that survive halving each frame ``levels`` times: one split of the paper's Laplacian
    pyramid, with bilinear filters.
    """

    name = "fdg"
    low: float = 0.5
    levels: int = 1

    def __post_init__(self) -> None:
        self._require("low", 0)
        self._require("levels", 1)

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        update = branches.cond - branches.uncond
        planes = update.flatten(0, -3)[:, None]
        half = 2**self.levels
        if min(planes.shape[-2:]) < half:
            raise InputError(
                f"guidance fdg: {planes.shape[-2]}x{planes.shape[-1]} latents cannot be halved {self.levels} times"
            )
        smaller = functional.adaptive_avg_pool2d(planes, (planes.shape[-2] // half, planes.shape[-1] // half))
        coarse = functional.interpolate(smaller, planes.shape[-2:], mode="bilinear").view_as(update)
        return branches.cond + (scale - 1) * (update + (self.low - 1) * coarse)


@dataclass(frozen=True)
class PerpendicularNegative(Rule):
    """Perp-Neg (Armandpour et al. 2304.04968, eq. 8): of the negative prompt only what is perpendicular to the prompt
    is taken away: uncond + s ((cond - uncond) - weight (negative - uncond)_perpendicular). Neutral: weight 0.

    The negative prompt no longer takes the null caption's place: three branches run.
    """

    name = "perp-neg"
    needs_negative = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._require("weight", 0)

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        if branches.negative is None:
            raise InputError("guidance perp-neg needs a negative prompt")
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
    if name not in RULES:
        raise InputError(f"guidance rule {name!r} does not exist{nearest(name, RULES)}")
    rule = RULES[name]()
    settings = {setting.name: setting.type for setting in fields(rule)}
    given: dict[str, float] = {}
    for part in rest.split(",") if rest else ():
        setting, equals, value = (piece.strip() for piece in part.partition("="))
        if setting not in settings:
            known = f"{name} has {', '.join(settings)}" if settings else f"{name} has no settings"
            raise InputError(f"guidance {name}: {setting!r} is not a setting: {known}")
        try:
            if not equals or setting in given:
                raise ValueError
            given[setting] = int(value) if settings[setting] == "int" else float(value)
        except ValueError:
            raise InputError(f"guidance {name}: {part!r} cannot be read: give {setting}=NUMBER, once") from None
    return RULES[name](**given)


def rule_text(rule: Rule) -> str:
    """The canonical form of a rule, with all its settings; ``parse_rule`` reads it back."""
    settings = [f"{s.name}={getattr(rule, s.name)!r}".removesuffix(".0") for s in fields(rule)]
    return rule.name + (":" + ",".join(settings) if settings else "")


def _over_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to multiply ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, shaped to multiply them."""
    return _over_sample((a * b).flatten(1).sum(1), a)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _projected(a: Tensor, onto: Tensor) -> Tensor:
    """The part of each sample of ``a`` that lies along that of ``onto``."""
    return onto * (_dot(a, onto) / _dot(onto, onto).clamp_min(1e-12))
