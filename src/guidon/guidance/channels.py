"""Which latent channels are guided and how strongly: parsed, validated, and the only place where it is decided.

DiT guided three of its four channels by accident; PixArt and Open-Sora 1.0 copied the slice. Three therefore
reproduces them and is the default; ``"all"`` is what most other pipelines do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final

import torch
from torch import Tensor

from ..core.errors import InputError

CfgChannels = int | str | Sequence[int] | None
Refuse = Callable[[str], InputError]


class Unset:
    """The default of ``cfg_channels``: three, unless scales were given channel by channel."""

    def __repr__(self) -> str:
        return "unset"


UNSET: Final = Unset()
DEFAULT_COUNT = 3


@dataclass(frozen=True)
class ChannelScale:
    """One guidance scale per latent channel; an unguided channel has scale 1.

    Attributes:
        scales: the scale of every channel.
        guided: indices of the channels that were chosen, increasing. A chosen channel may have scale 1.
    """

    scales: tuple[float, ...]
    guided: tuple[int, ...]

    @classmethod
    def parse(
        cls, cfg_scale: float | Sequence[float], cfg_channels: CfgChannels | Unset = UNSET, *, channels: int
    ) -> ChannelScale:
        """From what a user says, in Python or on the command line.

        Args:
            cfg_scale: one scale for all chosen channels, or one per latent channel.
            cfg_channels: ``3`` the first three; ``"all"`` or None; ``"none"``; ``[0, 2]``, ``"0,2"``, ``"0-2"``
                exactly these; ``"only:3"``. A bare number in text is a count too. Left out: the first three (all of
                a model with fewer), or every channel when ``cfg_scale`` is given per channel.
            channels: how many latent channels the model has.

        Raises:
            InputError: with what was given, what the model has and what would be valid.
        """
        per_channel = not isinstance(cfg_scale, Real)
        scales = _scales(cfg_scale, channels)
        if isinstance(cfg_channels, Unset):
            chosen = tuple(range(channels if per_channel else min(DEFAULT_COUNT, channels)))
        else:
            chosen = parse_channels(cfg_channels, channels)
            stray = [c for c in range(channels) if per_channel and c not in chosen and scales[c] != 1]
            if stray:
                raise InputError(
                    f"cfg_scale gives channel {stray[0]} the scale {scales[stray[0]]:g}, but cfg_channels "
                    f"{cfg_channels!r} leaves it unguided: give it scale 1, or leave cfg_channels out"
                )
        return cls(tuple(scales[c] if c in chosen else 1.0 for c in range(channels)), chosen)

    @property
    def is_identity(self) -> bool:
        """Every scale is 1: the conditional model, whose unconditional branch need not run."""
        return all(scale == 1 for scale in self.scales)

    @property
    def text(self) -> str:
        """The canonical form of the choice of channels; ``parse`` reads it back."""
        if not self.guided:
            return "none"
        if len(self.guided) == len(self.scales):
            return "all"
        if self.guided == tuple(range(len(self.guided))):
            return str(len(self.guided))
        if len(self.guided) == 1:
            return f"only:{self.guided[0]}"
        return ",".join(str(c) for c in self.guided)

    def weighted(self, weight: float) -> ChannelScale:
        """Scales moved towards 1 (or beyond): 1 + weight (scale - 1) on the guided channels."""
        if weight == 1:
            return self
        return ChannelScale(
            tuple(1 + weight * (scale - 1) if c in self.guided else 1.0 for c, scale in enumerate(self.scales)),
            self.guided,
        )

    def active(self) -> tuple[int, ...]:
        """Indices of the channels whose scale is not 1."""
        return tuple(c for c, scale in enumerate(self.scales) if scale != 1)


def parse_channels(given: CfgChannels, channels: int) -> tuple[int, ...]:
    """The indices a choice of channels stands for; see ``ChannelScale.parse``."""
    last = channels - 1
    valid = (
        f"this model has {channels} latent channels: give a count from 1 to {channels}, 'all', 'none', "
        f"indices such as '0,2' or '0-{last}', or 'only:{last}'"
    )

    def refuse(why: str) -> InputError:
        return InputError(f"cfg_channels {given!r} {why}; {valid}")

    if given is None:
        return tuple(range(channels))
    if isinstance(given, bool | float):
        raise refuse("is not a choice of channels")
    if isinstance(given, Integral):
        if not 1 <= int(given) <= channels:
            raise refuse("is not a count of channels it has")
        return tuple(range(int(given)))
    if isinstance(given, str):
        return _parse_text(given.strip().lower(), channels, refuse)
    choices: Any = given
    indices: list[Any] = list(choices)
    if any(isinstance(c, bool) or not isinstance(c, Integral) for c in indices):
        raise refuse("must hold whole numbers")
    return _checked([int(c) for c in indices], channels, refuse)


def _parse_text(text: str, channels: int, refuse: Refuse) -> tuple[int, ...]:
    if text in ("all", "none"):
        return tuple(range(channels)) if text == "all" else ()
    if text.isdecimal():
        if not 1 <= int(text) <= channels:
            raise refuse("is not a count of channels it has")
        return tuple(range(int(text)))
    if match := re.fullmatch(r"only:(\d+)", text):
        return _checked([int(match[1])], channels, refuse)
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise refuse("cannot be read")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise refuse("holds a range that runs backwards")
        indices += range(first, min(last, channels) + 1)
    return _checked(indices, channels, refuse)


def _checked(indices: list[int], channels: int, refuse: Refuse) -> tuple[int, ...]:
    if not indices:
        raise refuse("chooses no channel")
    if len(set(indices)) != len(indices):
        raise refuse("names a channel twice")
    wrong = [c for c in indices if not 0 <= c < channels]
    if wrong:
        raise refuse(f"names channel {wrong[0]}, but they are numbered 0 to {channels - 1}")
    return tuple(sorted(indices))


def _scales(given: Any, channels: int) -> tuple[float, ...]:
    """One scale per channel, each finite and not negative."""
    if isinstance(given, str | bool) or not isinstance(given, Real | Sequence):
        raise InputError(
            f"cfg_scale {given!r} is not a number: give one of at least 0 (1 is no guidance), or one per channel"
        )
    values: list[Any] = [given] * channels if isinstance(given, Real) else [*given]
    if len(values) != channels:
        raise InputError(
            f"cfg_scale has {len(values)} values, but this model has {channels} latent channels: "
            f"give one number or {channels}"
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise InputError(f"cfg_scale {value!r} is not valid: give a finite number of at least 0 (1 is no guidance)")
    return tuple(float(value) for value in values)


def cfg_channels_from(settings: Mapping[str, Any]) -> CfgChannels | Unset:
    """The choice of channels in a settings mapping, under ``cfg_channels`` or Open-Sora's ``cfg_channel``."""
    spellings = [name for name in ("cfg_channels", "cfg_channel") if name in settings]
    if len(spellings) == 2 and settings["cfg_channels"] != settings["cfg_channel"]:
        raise InputError(
            f"cfg_channels is {settings['cfg_channels']!r} and cfg_channel is {settings['cfg_channel']!r}: "
            "they are one setting, give it once"
        )
    return settings[spellings[0]] if spellings else UNSET


def random_rotation(channels: int, seed: int) -> Tensor:
    """A uniformly random orthogonal matrix (C, C), float32: the control for "is this channel special?"."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.orthogonal_(torch.empty(channels, channels), generator=generator)
