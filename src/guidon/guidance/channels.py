"""Which latent channels are guided, and how strongly: here every choice of channels becomes scales.

DiT guided three of its four channels by accident; PixArt and Open-Sora 1.0 copied the slice. The default, three,
reproduces them; presets state their own. ``"all"`` is what most other pipelines do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final

from ..core.errors import InputError, setting, written

CfgChannels = int | str | Sequence[int] | None
Refuse = Callable[[str], InputError]  # the error of a choice of channels, from why it is not valid


@dataclass(frozen=True)
class Unset:
    """The default of ``cfg_channels``: three, unless scales were given channel by channel."""

    def __repr__(self) -> str:
        return "unset"


UNSET: Final = Unset()
NAMES = ("cfg_scale", "cfg_channels")
"""The settings of scale and channels, as requests and manifests name them."""
DEFAULT_COUNT = 3
MOST_CHANNELS = 65536  # no latent has more; a range of indices ends here
DIGITS = r"\d{1,20}"  # Python refuses to read numbers of thousands of digits
_FORMS = "a count such as 3, 'all', 'none', indices such as '0,2' or '0-2', or 'only:3'"


@dataclass(frozen=True)
class ChannelChoice:
    """A choice of channels, before it is known how many a model has."""

    count: int | None = None
    """The number of leading channels."""
    indices: tuple[int, ...] | None = None
    """Exactly these channels, increasing; empty for none. Without count and indices the choice is all channels."""

    @classmethod
    def parse(cls, given: CfgChannels | ChannelChoice, name: str = "cfg_channels") -> ChannelChoice:
        """A choice from what a user says; see ``ChannelScale.parse``.

        Args:
            given: what was said.
            name: the setting that holds it, for the message.

        Raises:
            InputError: it cannot be read.
        """
        return cls.read(given, lambda why: _refusal(given, why, name=name))

    @classmethod
    def read(cls, given: CfgChannels | ChannelChoice, refuse: Refuse) -> ChannelChoice:
        """``parse``, with an error of the caller's."""
        if isinstance(given, ChannelChoice):
            return given
        if given is None:
            return cls()
        if isinstance(given, bool | float):
            raise refuse("is not a choice of channels")
        if isinstance(given, Integral):
            return cls._first(int(given), refuse)
        if isinstance(given, str):
            return cls._parse_text(given, refuse)
        sequence: Any = given
        if not hasattr(sequence, "__iter__"):
            raise refuse("is not a choice of channels")
        listed: list[Any] = list(sequence)
        if any(isinstance(index, bool) or not isinstance(index, Integral) for index in listed):
            raise refuse("must hold whole numbers")
        return cls._exactly([int(index) for index in listed], refuse)

    @classmethod
    def _parse_text(cls, given: str, refuse: Refuse) -> ChannelChoice:
        text = given.strip().lower()
        if text in ("all", "none"):
            return cls() if text == "all" else cls(indices=())
        if re.fullmatch(DIGITS, text):
            return cls._first(int(text), refuse)
        if match := re.fullmatch(rf"only:({DIGITS})", text):
            return cls._exactly([int(match[1])], refuse)
        indices: list[int] = []
        for part in text.split(","):
            match = re.fullmatch(rf"\s*({DIGITS})(?:-({DIGITS}))?\s*", part)
            if not match:
                raise refuse("cannot be read")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise refuse("holds a range that runs backwards")
            if last >= MOST_CHANNELS:
                raise refuse(f"names channel {last}, and no latent has so many")
            indices += range(first, last + 1)
        return cls._exactly(indices, refuse)

    @classmethod
    def _first(cls, count: int, refuse: Refuse) -> ChannelChoice:
        if count < 1:
            alone = ": channel 0 alone is 'only:0'" if count == 0 else ""
            raise refuse(f"is not a count of channels{alone}")
        return cls(count=count)

    @classmethod
    def _exactly(cls, indices: list[int], refuse: Refuse) -> ChannelChoice:
        if not indices:
            raise refuse("chooses no channel")
        if len(set(indices)) != len(indices):
            raise refuse("names a channel twice")
        if min(indices) < 0:
            raise refuse(f"names channel {written(min(indices))}, but they are numbered from 0")
        return cls(indices=tuple(sorted(indices)))

    @property
    def text(self) -> str:
        """The choice as text; ``parse`` reads it back."""
        if self.count is not None:
            return str(self.count)
        if self.indices is None:
            return "all"
        if not self.indices:
            return "none"
        text = ",".join(map(str, self.indices))
        return text if len(self.indices) > 1 else f"only:{text}"

    def indices_for(self, channels: int, name: str = "cfg_channels") -> tuple[int, ...]:
        """The indices that are chosen of a model's channels, increasing; ``name`` as in ``parse``.

        Raises:
            InputError: the model has no such channels.
        """
        return self.find(channels, lambda why: _refusal(self, why, channels, name))

    def find(self, channels: int, refuse: Refuse) -> tuple[int, ...]:
        """``indices_for``, with an error of the caller's."""
        if self.count is not None:
            if self.count > channels:
                raise refuse("asks for more channels than the model has")
            return tuple(range(self.count))
        if self.indices is None:
            return tuple(range(channels))
        if self.indices and self.indices[-1] >= channels:
            wrong = next(index for index in self.indices if index >= channels)
            raise refuse(f"names channel {written(wrong)}, but they are numbered 0 to {channels - 1}")
        return self.indices


@dataclass(frozen=True)
class ChannelScale:
    """One guidance scale per latent channel of a model; an unguided channel has scale 1."""

    scales: tuple[float, ...]
    """The scale of every channel."""
    guided: tuple[int, ...]
    """Indices of the channels that were chosen, increasing. A chosen channel may have scale 1."""

    @classmethod
    def parse(
        cls,
        cfg_scale: float | Sequence[float],
        cfg_channels: CfgChannels | ChannelChoice | Unset = UNSET,
        *,
        channels: int,
        names: tuple[str, str] = NAMES,
    ) -> ChannelScale:
        """From what a user says, in Python or on the command line.

        Args:
            cfg_scale: one scale for all chosen channels, or one per latent channel.
            cfg_channels: ``3`` the first three; ``"all"`` or None; ``"none"``; ``[0, 2]``, ``"0,2"``, ``"0-2"``
                exactly these; ``"only:3"``. A bare number in text is a count too. Left out: the first three (all of
                a model with fewer), or every channel when ``cfg_scale`` is given per channel.
            channels: how many latent channels the model has.
            names: under which scale and channels were given, for the message.

        Raises:
            InputError: with what was given, what the model has and what would be valid.
        """
        of_scale, of_channels = names
        given = parse_scale(cfg_scale, of_scale)
        per_channel = isinstance(given, tuple)
        scales = given if isinstance(given, tuple) else (given,) * channels
        if len(scales) != channels:
            comma = " (one and a half is written 1.5)" if len(scales) == 2 else ""  # 1,5 is a number in other languages
            raise InputError(
                f"{setting(of_scale)} has {len(scales)} values, but this model has {channels} latent channels: "
                f"give one number or {channels}{comma}"
            )
        if isinstance(cfg_channels, Unset):
            chosen = tuple(range(channels if per_channel else min(DEFAULT_COUNT, channels)))
        else:
            chosen = parse_channels(cfg_channels, channels, of_channels)
            stray = [c for c in range(channels) if per_channel and c not in chosen and scales[c] != 1]
            if stray:
                raise InputError(
                    f"{setting(of_scale)} gives channel {stray[0]} the scale {scales[stray[0]]:g}, but "
                    f"{setting(of_channels)} {_shown(cfg_channels)} leaves it unguided: give it scale 1, or leave "
                    f"{setting(of_channels)} out"
                )
        return cls(tuple(scales[c] if c in chosen else 1.0 for c in range(channels)), chosen)

    @property
    def is_identity(self) -> bool:
        """Every scale is 1: the conditional model, whose unconditional branch need not run."""
        return all(scale == 1 for scale in self.scales)

    @property
    def choice(self) -> ChannelChoice:
        """The choice of channels in its canonical form: all, none, a count if they are the first ones, else indices."""
        count = len(self.guided)
        if count == len(self.scales):
            return ChannelChoice()
        return (
            ChannelChoice(count=count) if count and self.guided[-1] == count - 1 else ChannelChoice(None, self.guided)
        )

    @property
    def text(self) -> str:
        """The choice as text; ``parse`` reads it back."""
        return self.choice.text

    def weighted(self, weight: float, *, whole: bool = False) -> ChannelScale:
        """Every guided scale's distance from 1, multiplied: 1 + weight (scale - 1).

        Args:
            weight: the factor.
            whole: multiply the scale itself: weight scale. A channel of scale 1 stays unguided.
        """
        if weight == 1:
            return self
        guided = (scale != 1 and c in self.guided for c, scale in enumerate(self.scales))
        scales = zip(guided, self.scales, strict=True)
        if whole:
            return ChannelScale(tuple(weight * scale if acts else 1.0 for acts, scale in scales), self.guided)
        return ChannelScale(tuple(1 + weight * (scale - 1) if acts else 1.0 for acts, scale in scales), self.guided)

    def active(self) -> tuple[int, ...]:
        """Indices of the channels whose scale is not 1."""
        return tuple(c for c, scale in enumerate(self.scales) if scale != 1)


def parse_channels(given: CfgChannels | ChannelChoice, channels: int, name: str = "cfg_channels") -> tuple[int, ...]:
    """The indices that a choice stands for; see ``ChannelScale.parse``.

    Args:
        given: the choice.
        channels: how many channels the model has.
        name: the setting that holds the choice, for the message.

    Raises:
        InputError: it cannot be read, or the model has no such channels.
    """

    def refuse(why: str) -> InputError:
        return _refusal(given, why, channels, name)

    return ChannelChoice.read(given, refuse).find(channels, refuse)


def guides_nothing(scales: ChannelScale, purpose: str) -> InputError:
    """The refusal of scales that leave every channel as it is, where guidance is needed for a purpose: "measure"."""
    if not scales.guided:
        return InputError(
            f"{setting('cfg_channels')} none guides no channel, so there is nothing to {purpose}: choose some channels"
        )
    scale = max(scales.scales)
    return InputError(
        f"{setting('cfg_scale')} {scale:g} guides nothing, so there is nothing to {purpose}: give one above 1"
    )


def plain_scale(given: Any) -> Any:
    """A scale as Python's own number or list, where it is an array of numpy or a tensor."""
    return given.tolist() if hasattr(given, "tolist") else given


def parse_scale(given: Any, name: str = "cfg_scale") -> float | tuple[float, ...]:
    """One scale, or one per channel, each finite and at least 0.

    Args:
        given: a number or a sequence of numbers; also an array of numpy, or a tensor.
        name: the setting that holds it, for the message.

    Raises:
        InputError: it is no number, nor a sequence of numbers.
    """
    name, given = setting(name), plain_scale(given)
    if isinstance(given, str | bool) or not isinstance(given, Real | Sequence):
        raise InputError(
            f"{name} {given!r} is not a number: give one of at least 0 (1 is no guidance), or one per channel"
        )
    values: list[Any] = [given] if isinstance(given, Real) else [*given]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real) or not _is_scale(value):
            raise InputError(
                f"{name} {written(value)} is not valid: give a finite number of at least 0 (1 is no guidance)"
            )
    return float(values[0]) if isinstance(given, Real) else tuple(float(value) for value in values)


def _is_scale(value: Real) -> bool:
    try:
        return math.isfinite(value) and float(value) >= 0
    except OverflowError:  # a whole number that no float holds
        return False


def cfg_channels_from(settings: Mapping[str, Any]) -> CfgChannels | ChannelChoice | Unset:
    """The choice of channels in a settings mapping, under ``cfg_channels`` or Open-Sora's ``cfg_channel``.

    Raises:
        InputError: both are given and differ.
    """
    spellings = [name for name in ("cfg_channels", "cfg_channel") if name in settings]
    if len(spellings) == 2 and settings["cfg_channels"] != settings["cfg_channel"]:
        raise InputError(
            f"cfg_channels is {settings['cfg_channels']!r} and cfg_channel is {settings['cfg_channel']!r}: "
            "they are one setting, give it once"
        )
    return settings[spellings[0]] if spellings else UNSET


def _shown(given: object) -> str:
    return written(given, lambda value: repr(value.text if isinstance(value, ChannelChoice) else value))


def _refusal(given: object, why: str, channels: int | None = None, name: str = "cfg_channels") -> InputError:
    valid = f"give {_FORMS}"
    if channels is not None:
        last = channels - 1
        valid = (
            f"this model has {channels} latent channels: give a count from 1 to {channels}, 'all', 'none', "
            f"indices such as '0,2' or '0-{last}', or 'only:{last}'"
        )
    return InputError(f"{setting(name)} {_shown(given)} {why}; {valid}")
