"""Settings and numbers in words, for readers who have not read the plan."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import InputError
from ..guidance.channels import ChannelChoice
from ..metrics.metric import SHARE, Metric
from ..metrics.statistics import Interval

SMALL_NUMBERS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
"""Numbers that are written as words."""
NEGLIGIBLE = 1e-6  # a smaller number is written as "about 0": it is a rounding error in every metric


def spell_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By setting of a plan, its name with the guided channels in words; see ``list_choices``."""
    return {name: ", ".join(choices) for name, choices in list_choices(settings).items()}


def list_choices(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """By setting of a plan, the choices that its name consists of, with the guided channels in words.

    A name that a study made itself, "scale 2, channels only:1", becomes "scale 2" and "channel 1 alone". If two
    settings would get the same words, both keep their names.
    """
    divided = {name: _divide(name, own) for name, own in settings.items()}
    spelled = {
        name: [_spell_part(part, settings[name].get("cfg_channels")) for part in parts]
        for name, parts in divided.items()
    }
    times = Counter(map(", ".join, spelled.values()))
    return {name: own if times[", ".join(own)] == 1 else divided[name] for name, own in spelled.items()}


def _divide(name: str, own: Mapping[str, Any]) -> list[str]:
    """The parts of a name between ", ". A comma within one value of the setting divides nothing."""
    scale, channels, negative = (own.get(key) for key in ("cfg_scale", "cfg_channels", "negative_prompt"))
    values = [value for value in own.values() if isinstance(value, str)]
    values += [spell_channels(channels)] if isinstance(channels, str) else []
    values += [spell_negative(negative)] if isinstance(negative, str) else []
    values += [",".join(f"{one:g}" for one in scale)] if isinstance(scale, list) else []
    whole = sorted((value for value in values if "," in value), key=len, reverse=True)
    parts, start = list[str](), 0
    for found in re.finditer("|".join([*(re.escape(value).replace(",", ", ?") for value in whole), ", "]), name):
        if found[0] == ", ":
            parts.append(name[start : found.start()])
            start = found.end()
    return [*parts, name[start:]]


def _spell_part(part: str, channels: object) -> str:
    """One choice of a name in words. ``channels`` is the setting's cfg_channels as the plan holds it."""
    before, marker, given = part.rpartition("channels ")
    if not marker or (before and not before.endswith(": ")):
        return part
    try:
        found = ChannelChoice.parse(given)
    except InputError:
        return part
    # A list of one channel is named like a count. The plan says which of the two it is.
    if found.text != channels and f"only:{given}" != channels:
        return part
    return before + spell_channels(str(channels))


def spell_channels(channels: str) -> str:
    """A choice of channels in words: "3" is "first 3 channels", "only:1" is "channel 1 alone"."""
    choice = ChannelChoice.parse(channels)
    if choice.count is not None:
        return "first channel" if choice.count == 1 else f"first {choice.count} channels"
    if choice.indices is None:
        return "all channels"
    if not choice.indices:
        return "no channel"
    first, last = choice.indices[0], choice.indices[-1]
    if first == last:
        return f"channel {first} alone"
    if last - first + 1 == len(choice.indices) > 2:
        return f"channels {first} to {last}"
    return f"channels {', '.join(map(str, choice.indices[:-1]))} and {last}"


def spell_timing(timing: str) -> str:
    """When guidance acts, in words: "interval:0,0.5" is "guided from 0% to 50% of sampling"."""
    kind, _, values = timing.partition(":")
    ends = values.split(",")
    if kind == "constant":
        return "guided at every step"
    if kind == "interval" and len(ends) == 2:
        return f"guided from {100 * float(ends[0]):.3g}% to {100 * float(ends[1]):.3g}% of sampling"
    return f"timing {timing}"


def spell_negative(prompt: str) -> str:
    """A negative prompt in a name; a long one is cut off."""
    return f"not “{prompt:.40}”"


def tell_apart(a: Sequence[str], b: Sequence[str]) -> tuple[str, str]:
    """The names of two settings without the choices that they share.

    "scale 2" and "all channels", "scale 2" and "first channel" become "all channels" and "first channel".
    """
    short = [", ".join(part for part in own if part not in other) for own, other in ((a, b), (b, a))]
    return (short[0], short[1]) if all(short) else (", ".join(a), ", ".join(b))


def spell_count(count: int, thing: str) -> str:
    """A number of things at the start of a sentence: "Twelve prompts"."""
    number = SMALL_NUMBERS[count].capitalize() if count < len(SMALL_NUMBERS) else f"{count:,}"
    return f"{number} {thing}{'' if count == 1 else 's'}"


def write_value(value: float, unit: str = "") -> str:
    """A value of a metric without its unit: a share in per cent, other units with three digits."""
    if not math.isfinite(value):
        return "undefined"
    if unit == SHARE:
        return f"{_decimal(100 * value)}%"
    return "about 0" if 0 < abs(value) < NEGLIGIBLE else f"{value:.3g}"


def write_change(value: float, unit: str = "", largest: float | None = None) -> str:
    """A difference with its sign, without its unit; that of a share in points.

    Args:
        value: the difference.
        unit: of the metric.
        largest: the largest of the numbers that stand beside it, which decides how many decimals it has.
    """
    factor, digits = (100, 1) if unit == SHARE else (1, 2)
    value, largest = factor * value, factor * abs(value if largest is None else largest)
    if not math.isfinite(value):
        return "undefined"
    decimals = digits - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
    if not -6 < decimals < 9:
        return f"{value:+.3g}" if value else "0"
    text = f"{value:+.{max(0, decimals)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if not text.strip("+-0.") else text


def write_interval(interval: Interval, unit: str) -> str:
    """A difference with its 95% interval: "+1.6 points [-3.1, +6.3]"."""
    numbers = (interval.value, interval.low, interval.high)
    largest = max((abs(number) for number in numbers if math.isfinite(number)), default=0.0)
    value, low, high = (write_change(number, unit, largest) for number in numbers)
    return f"{value} {change_unit(unit)} [{low}, {high}]"


def round_points(share: float) -> str:
    """A difference of shares in points, roughly: "60 points"."""
    points = 100 * share
    return f"{points:.0f} points" if points < 10 or math.isinf(points) else f"{5 * round(points / 5)} points"


def change_unit(unit: str) -> str:
    """The unit of a difference: points for a share."""
    return "points" if unit == SHARE else unit


def write_p(p: float) -> str:
    """A p value: "p = 0.031", or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def write_direction(metric: Metric) -> str:
    """Which way is better, as a sentence."""
    if metric.better is None:
        return "Neither way is better by itself."
    return "↑\u00a0Higher is better." if metric.better == "higher" else "↓\u00a0Lower is better."


def _decimal(value: float) -> str:
    """A number with one decimal below 10, without needless zeros."""
    if 0 < abs(value) < 0.05:
        return "under 0.1"
    if abs(value) < 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:.0f}"
