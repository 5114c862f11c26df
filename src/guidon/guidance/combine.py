"""Guidance as a value: channel scales, rule and timing; and ``combine``, which joins the branches of one step.

It runs no network and knows no sampler: tensors in, the guided prediction out. ``GuidedDenoiser`` calls it in every
sampling run; a bridge calls it on another pipeline's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Never, Protocol

from ..core.errors import InputError, nearest, quoted, setting, written
from .channels import NAMES, UNSET, CfgChannels, ChannelChoice, ChannelScale, Unset, cfg_channels_from, parse_scale
from .rules import Branches, Rule, cfg, parse_rule, rule_text
from .timing import LEFT_OUT, Constant, Timing, parse_timing

if TYPE_CHECKING:  # guidance is read and checked without torch, which takes seconds to import
    import torch
    from torch import Tensor

    from ..diffusion import NoiseLevel, Parameterization


@dataclass(frozen=True, eq=False)
class Memory:
    """What guidance carries from one call to the next of a run. A run begins with ``START``."""

    calls: int = 0
    """Calls so far."""
    guided: int = 0
    """Those of them at which guidance acted."""
    kept: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    """What the rule keeps."""
    steps: int | None = None
    """The steps of the run; None where its levels do not tell."""


START = Memory()
ALIKE = (("cfg_scale", "scale", "guidance_scale"), ("cfg_channels", "channels"), ("guidance", "rule"))
"""Names of one setting: its key in JSON and in a call, the argument of ``Guidance``, and what diffusers calls it."""
KEYS = ("cfg_scale", "cfg_channels", "cfg_channel", "guidance", "timing")
TIMINGS = {
    "interval": "interval:0,0.5",
    "ramp": "linear",
    "oscillate": "oscillation:10",
    "oscillation": "oscillation:10",
}
"""Names of timings, which are options of the command line, and what ``timing`` is given for them."""


@dataclass(frozen=True, init=False)
class Guidance:
    """How the predictions of a step are joined: which channels, how strongly, by which rule, when.

    ::

        guidance = Guidance(scale=3, channels="all", rule="apg", timing="interval:0,0.5")
        guided, memory = guidance.combine(cond, uncond, x, level)
    """

    scale: float | tuple[float, ...]
    """One scale for all guided channels, or one per latent channel. 1 is the conditional prediction."""
    channels: ChannelChoice | Unset
    """Which channels are guided. Unset: the first three, or all where the scale is given per channel."""
    rule: Rule
    """How the branches are combined."""
    timing: Timing
    """When guidance acts."""
    _names: tuple[str, str] = field(init=False, compare=False, repr=False)
    """The names under which scale and channels were given, for messages."""

    def __init__(
        self,
        scale: float | Sequence[float] | Unset = UNSET,
        channels: CfgChannels | ChannelChoice | Unset = UNSET,
        rule: str | Rule = "cfg",
        timing: str | Timing = LEFT_OUT,
        **other: Never,
    ) -> None:
        """Read the user's values, once.

        Args:
            scale: one number of at least 0, or one per latent channel. It must be given.
            channels: ``3`` the first three; ``"all"`` or None; ``"none"``; ``[0, 2]``, ``"0,2"``, ``"0-2"`` exactly
                these; ``"only:3"``.
            rule: a rule, or its name and settings such as ``"apg:momentum=0"``.
            timing: a timing, or its text such as ``"constant"``, ``"interval:0,0.5"``, ``"linear"``,
                ``"exponential:0.7"``, ``"oscillation:10"``. Left out, a model of Guidon's takes the timing that is
                recommended for it (guidon-small: ``"interval:0,0.5"``). Everywhere else, as in ``combine``,
                ``guidon.apply`` and ``guidon.Request``, it is ``"constant"``.
            other: names that do not exist; the error says which one is meant.

        Raises:
            InputError: a value is not valid, two of them do not go together, or a name does not exist.
        """
        for name in other:
            raise InputError(f"Guidance has no {name!r}{_hint(name, ('scale', 'channels', 'rule', 'timing'))}")
        if isinstance(scale, Unset):  # after the names, one of which may be meant for it
            raise InputError("Guidance has no scale: give one, as in Guidance(6, channels=3)")
        self._read(scale, channels, rule, timing, ("scale", "channels"))

    def _read(self, scale: Any, channels: Any, rule: Any, timing: Any, names: tuple[str, str]) -> None:
        """Set the fields from the user's values."""
        parsed = parse_scale(scale, names[0])
        choice = channels if isinstance(channels, Unset) else ChannelChoice.parse(channels, names[1])
        rule = rule if isinstance(rule, Rule) else parse_rule(written(rule, str))
        timing = timing if isinstance(timing, Timing) else parse_timing(written(timing, str))
        rule.check(parsed if isinstance(parsed, tuple) else [parsed])
        if timing.ramps and not rule.takes_ramps:
            raise InputError(
                f"{setting('guidance')} {rule.name} changes its scale during sampling: give no ramp ({timing.text})"
            )
        for name, value in (
            ("scale", parsed), ("channels", choice), ("rule", rule), ("timing", timing), ("_names", names),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    # the settings, as JSON and manifests hold them

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Guidance:
        """From the keys ``cfg_scale``, ``cfg_channels`` (or ``cfg_channel``), ``guidance`` and ``timing``.

        Raises:
            InputError: a key does not exist, or as for the constructor.
        """
        for name in settings:
            if name not in KEYS:
                raise InputError(f"{quoted(name)} is not a setting of guidance{_hint(str(name), KEYS)}")
        made = cls.__new__(cls)
        made._read(
            settings.get("cfg_scale", 1.0),
            cfg_channels_from(settings),
            settings.get("guidance", "cfg"),
            settings.get("timing", "constant"),
            NAMES,
        )
        return made

    def _with(self, **changes: Any) -> Guidance:
        """The same guidance with other fields, under the names that the user knows."""
        made = replace(self, **changes)
        object.__setattr__(made, "_names", self._names)
        return made

    def to_settings(self) -> dict[str, Any]:
        """Plain values under the same keys; ``from_settings`` reads them back."""
        channels = {} if isinstance(self.channels, Unset) else {"cfg_channels": self.channels.text}
        return {"cfg_scale": self.scale, **channels, "guidance": rule_text(self.rule), "timing": self.timing.text}

    # what it does to a model of so many latent channels

    def scales_for(self, channels: int) -> ChannelScale:
        """The scale of every latent channel of a model.

        Raises:
            InputError: the model has other channels.
        """
        return _scales(self.scale, self.channels, channels, self._names)

    @property
    def is_timed(self) -> bool:
        """Whether a timing was given."""
        return not (isinstance(self.timing, Constant) and self.timing.left_out)

    def with_timing(self, timing: str) -> Guidance:
        """The same guidance with this timing, where none was given."""
        return self if self.is_timed else self._with(timing=parse_timing(timing))

    def resolved(self, channels: int) -> Guidance:
        """The same guidance, its choice of channels in the canonical form for a model of so many channels.

        Raises:
            InputError: the model has other channels.
        """
        return self._with(channels=self.scales_for(channels).choice)

    @property
    def needs_negative(self) -> bool:
        """Whether the negative prompt is a branch of its own."""
        return self.rule.needs_negative

    @property
    def needs_weak(self) -> bool:
        """Whether a weaker conditional prediction is a branch too."""
        return self.rule.needs_weak

    @property
    def needs_imageless(self) -> bool:
        """Whether the unconditional prediction without the image is a branch too."""
        return self.rule.needs_imageless

    @property
    def needs_uncond(self) -> bool:
        """Whether the unconditional prediction is looked at, where guidance acts."""
        return self.rule.needs_uncond

    @property
    def is_conditional(self) -> bool:
        """Whether the result is the conditional prediction at every level, so that no other branch need run."""
        if isinstance(self.channels, ChannelChoice) and self.channels.indices == ():
            return True
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        return self.rule.by_scale_one and all(scale == 1 for scale in scales)

    def scale_at(self, level: NoiseLevel, memory: Memory, channels: int) -> ChannelScale:
        """The scales in effect at a level: those of ``scales_for``, weighted by the timing."""
        return self._acting(level, memory, channels)[0]

    def acts(self, level: NoiseLevel, memory: Memory, channels: int) -> bool:
        """Whether ``combine`` needs the other branches at this level; else it returns the conditional prediction."""
        return bool(self._acting(level, memory, channels)[1])

    def looks_at(self, level: NoiseLevel, memory: Memory, channels: int) -> Sequence[int]:
        """The channels of the other branches that ``combine`` reads at a level; none where it needs no other branch."""
        return self._acting(level, memory, channels)[1]

    def compared(self, prediction: Tensor, level: NoiseLevel, memory: Memory, channels: int) -> Tensor:
        """What of a branch (B, C or 2C, ...) tells whether it agrees with another one: the channels that are guided."""
        return prediction[:, list(self.looks_at(level, memory, channels))]

    def plain_at(self, level: NoiseLevel, memory: Memory, channels: int) -> tuple[int, float, Memory] | None:
        """How many leading channels ``combine`` guides by one scale and the plain rule, the scale, and its memory.

        No channel where it returns the conditional prediction. None where it does anything else.
        """
        scale, acted_on = self._acting(level, memory, channels)
        calls = memory.calls + 1
        if self.needs_imageless:
            return None
        if not acted_on:
            return 0, 1.0, replace(memory, calls=calls)
        factors = {scale.scales[channel] for channel in acted_on}
        if not self.rule.is_plain or not self.needs_uncond or self.needs_negative or len(factors) > 1:
            return None
        if acted_on != tuple(range(len(acted_on))):
            return None
        return len(acted_on), factors.pop(), Memory(calls, memory.guided + 1, {}, memory.steps)

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor | None,
        x: Tensor,
        level: NoiseLevel,
        memory: Memory = START,
        *,
        negative: Tensor | None = None,
        weak: Tensor | None = None,
        imageless: Tensor | None = None,
        parameterization: Parameterization = "eps",
    ) -> tuple[Tensor, Memory]:
        """The guided prediction of one step, and the memory for the next one. Pure: nothing that is given changes.

        Unguided channels, and all variance channels, are bit for bit the conditional prediction. Arithmetic is fp32.

        Args:
            cond: the conditional prediction (B, C or 2C, ...); of 2C channels the last C are a learned variance.
            uncond: the unconditional prediction, shaped like ``cond``; may be None where ``acts`` is false, and for a
                rule that does not need it (``needs_uncond``).
            x: the noisy latents (B, C, ...).
            level: how noisy x is, a ``guidon.NoiseLevel``. Its numbers are floats: one level for the whole batch.
            memory: what the step before returned.
            negative: the negative prompt's prediction, for a rule that needs it.
            weak: a weaker conditional prediction, for a rule that needs it (``needs_weak``).
            imageless: the unconditional prediction without the image, for a rule that needs it (``needs_imageless``).
            parameterization: what the predictions stand for: "eps" the noise, "x0" the clean sample, "v" the
                velocity alpha eps - sigma x_0, "flow" the velocity eps - x_0 of rectified flow. The names of diffusers,
                "epsilon", "sample", "v_prediction" and "flow_prediction", mean the same.

        Returns:
            The prediction, shaped like ``cond`` and in its dtype, and the memory.

        Raises:
            InputError: a branch is missing, the shapes or channels do not fit, ``level`` is no level, or the
                parameterization does not exist.
        """
        from ..diffusion.prediction import convert, find_parameterization, split_prediction

        parameterization = find_parameterization(parameterization)
        channels = x.shape[1]
        scale, acted_on = self._acting(level, memory, channels)
        steps = memory.steps if memory.calls or not self.needs_imageless else level.steps_left
        if not acted_on:
            return cond, replace(memory, calls=memory.calls + 1, steps=steps)
        if uncond is None and self.needs_uncond:
            raise InputError(
                f"guidance on channels {self.scales_for(channels).text} needs the unconditional prediction"
            )
        if self.needs_negative and negative is None:
            raise InputError(f"{setting('guidance')} {self.rule.name} needs a negative prompt")
        if self.needs_weak and weak is None:
            raise InputError(f"{setting('guidance')} {self.rule.name} needs a weak prediction: give weak")
        if self.needs_imageless and imageless is None:
            raise InputError(
                f"{setting('guidance')} {self.rule.name} needs the unconditional prediction without the image: give "
                "imageless, or another rule"
            )
        prediction, _ = split_prediction(cond, channels)
        if prediction.shape != x.shape:
            raise InputError(f"predictions {tuple(cond.shape)} do not fit latents {tuple(x.shape)}: only C may differ")
        named = {"unconditional": uncond, "negative": negative, "weak": weak, "imageless": imageless}
        for name, branch in named.items():
            if branch is not None and branch.shape != cond.shape:
                raise InputError(
                    f"the {name} prediction is {tuple(branch.shape)}, the conditional one {tuple(cond.shape)}: "
                    "give predictions of one shape"
                )
        # the guided channels alone, in the space in which the rule works
        where = _view(acted_on)
        rule = cfg if self.rule.is_plain else self.rule
        space = _space(rule, level, parameterization)
        noisy = x[:, where].float()

        def seen(prediction: Tensor) -> Tensor:
            return convert(prediction[:, where].float(), noisy, level, parameterization, space)

        weaker = seen(weak) if weak is not None and self.needs_weak else None
        other = seen(uncond) if uncond is not None and self.needs_uncond else weaker
        if other is None:
            raise InputError(f"{setting('guidance')} {self.rule.name} needs another prediction")
        branches = Branches(
            seen(cond), other, None if negative is None or not self.needs_negative else seen(negative), level,
            memory.kept, weaker, None if imageless is None or not self.needs_imageless else seen(imageless),
            memory.calls, _share(level, steps),
        )  # fmt: skip
        factor = _factor(tuple(scale.scales[c] for c in acted_on), x.device, x.ndim)
        # back to what the network predicts, beside the channels that are not guided
        result = cond.clone()
        if rule is cfg and isinstance(where, slice) and cond.dtype == branches.cond.dtype:  # no memory but the result's
            result[:, where].sub_(branches.uncond).mul_(factor).add_(branches.uncond)
        else:
            result[:, where] = convert(rule(branches, factor), noisy, level, space, parameterization).to(cond.dtype)
        return result, Memory(memory.calls + 1, memory.guided + 1, rule.keeps(branches, factor), steps)

    def _acting(self, level: NoiseLevel, memory: Memory, channels: int) -> tuple[ChannelScale, tuple[int, ...]]:
        """The scales in effect, and the channels that the rule is given: none where the result is the conditional
        prediction.
        """
        weight, own = self.timing(_progress(level), memory.calls), self.scales_for(channels)
        scale = own.weighted(weight, whole=self.timing.of_whole_scale)
        if weight == 0:
            return scale, ()
        if not self.rule.by_scale_one:
            return scale, scale.guided
        # a ramp may make a scale 1 at a step; what a rule keeps is of the same channels at all steps
        return scale, own.active() if scale.active() and not self.rule.is_plain else scale.active()


class Combines(Protocol):
    """What ``GuidedDenoiser`` asks of guidance: ``Guidance``, or a wrapper around it."""

    @property
    def needs_negative(self) -> bool: ...

    @property
    def needs_weak(self) -> bool: ...

    @property
    def needs_imageless(self) -> bool: ...

    @property
    def needs_uncond(self) -> bool: ...

    @property
    def is_conditional(self) -> bool: ...

    def acts(self, level: NoiseLevel, memory: Memory, channels: int) -> bool: ...

    def scale_at(self, level: NoiseLevel, memory: Memory, channels: int) -> ChannelScale: ...

    def looks_at(self, level: NoiseLevel, memory: Memory, channels: int) -> Sequence[int]: ...

    def compared(self, prediction: Tensor, level: NoiseLevel, memory: Memory, channels: int) -> Tensor: ...

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor | None,
        x: Tensor,
        level: NoiseLevel,
        memory: Memory = START,
        *,
        negative: Tensor | None = None,
        weak: Tensor | None = None,
        imageless: Tensor | None = None,
        parameterization: Parameterization = "eps",
    ) -> tuple[Tensor, Memory]: ...


@dataclass(frozen=True, eq=False)
class GuidedStep:
    """What an observer is shown of a step at which guidance acted."""

    level: NoiseLevel
    scale: ChannelScale
    """The scales in effect."""
    cond: Tensor
    """The conditional prediction (B, C, ...)."""
    uncond: Tensor
    """The unconditional prediction (B, C, ...); the weak one for a rule that does without it."""
    x: Tensor
    """The noisy latents (B, C, ...)."""
    parameterization: Parameterization
    rotation: Tensor | None = None
    """The rotation (C, C) under which channels were chosen; None if they were not rotated."""


Observe = Callable[[GuidedStep], None]


@lru_cache(maxsize=256)
def _scales(
    scale: float | tuple[float, ...], channels: ChannelChoice | Unset, count: int, names: tuple[str, str]
) -> ChannelScale:
    return ChannelScale.parse(scale, channels, channels=count, names=names)


@lru_cache(maxsize=256)
def _factor(values: tuple[float, ...], device: torch.device, ndim: int) -> float | Tensor:
    """A float where the guided channels share a scale, else (C_guided, 1, ...), sent to the device once."""
    if len(set(values)) == 1:
        return values[0]
    import torch

    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, *[1] * (ndim - 2))


def _share(level: NoiseLevel, steps: int | None) -> float:
    """The share of a run's steps that lie before a level; its progress where their number is not known."""
    left = level.steps_left if steps else None
    return _progress(level) if not steps or left is None else 1 - left / steps


def _space(rule: Rule, level: NoiseLevel, predicted: Parameterization) -> Parameterization:
    """The parameterisation in which a rule works at a level, on predictions of a network."""
    if rule.space == "own":
        return predicted
    if rule.space not in ("velocity", "noise"):
        return rule.space
    preserving = _preserves_variance(level)
    if preserving is None and level.next is not None:  # both kinds of path end at pure noise: the next level tells
        preserving = _preserves_variance(level.next)
    if preserving is None:
        preserving = predicted not in ("flow", "x0")  # ComfyUI's x_0 at pure noise is a flow's
    if rule.space == "velocity":
        return "v" if preserving else "flow"
    # pure noise shows no x_0: eps there is the latents, whatever x_0 or v is predicted
    return ("eps" if level.alpha or predicted == "eps" else predicted) if preserving else "flow"


def _preserves_variance(level: NoiseLevel) -> bool | None:
    """Whether a level is one of alpha^2 + sigma^2 = 1, not of alpha + sigma = 1; None at an end, where it is both."""
    from torch import Tensor

    def numbers(value: float | Tensor) -> list[float]:  # every sample may have its own
        return [float(each) for each in value.flatten()] if isinstance(value, Tensor) else [float(value)]

    pairs = list(zip(numbers(level.alpha), numbers(level.sigma), strict=True))
    preserving = all(abs(alpha**2 + sigma**2 - 1) < 1e-6 for alpha, sigma in pairs)
    straight = all(abs(alpha + sigma - 1) < 1e-6 for alpha, sigma in pairs)
    return None if preserving and straight else preserving


def _view(channels: tuple[int, ...]) -> slice | list[int]:
    """An index of channels; a slice, which makes a view, where they are neighbours."""
    first, last = channels[0], channels[-1]
    return slice(first, last + 1) if last - first + 1 == len(channels) else list(channels)


def _hint(name: str, valid: Sequence[str]) -> str:
    """What is meant by a name that does not exist."""
    if name in TIMINGS:
        return f": give timing={TIMINGS[name]!r}"
    meant = next((other for names in ALIKE if name in names for other in names if other in valid), None)
    return f" (did you mean {meant!r}?)" if meant else nearest(name, valid)


def _progress(level: object) -> float:
    from torch import Tensor

    from ..diffusion.level import NoiseLevel

    if not isinstance(level, NoiseLevel):
        raise InputError(f"level is {quoted(level)}: give a NoiseLevel(timestep=, alpha=, sigma=, progress=)")
    progress = level.progress
    if isinstance(progress, Tensor):
        raise InputError("guidance needs one level for the whole batch: its numbers are floats, not tensors")
    return progress
