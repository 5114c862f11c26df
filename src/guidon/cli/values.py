"""Parses the text of options: scales, a size, the timing of guidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..core.errors import InputError, nearest, setting
from .options import RAMPS

DIGITS = 18  # no size has more, and Python does not read thousands of them


def parse_scale(text: str | None) -> float | tuple[float, ...] | None:
    """Parse ``4``, one scale, or ``4,4,4,1``, one scale per channel."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{setting('cfg_scale')} {text!r} is not a number, nor one number per channel such as 4,4,4,1"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def parse_size(
    text: str | None,
    height: int | None,
    width: int | None,
    resolution: str | None = None,
    aspect_ratio: str | None = None,
) -> tuple[int, int] | None:
    """(height, width) from ``768x1344``, height first, from two separate numbers, or from the name of a resolution.

    None if none is given. The aspect ratio is height to width.
    """
    if resolution is not None:
        given = {"size": text, "height": height, "width": width}
        if others := [name for name, value in given.items() if value is not None]:
            raise InputError(f"{setting('resolution')} says the same as {setting(others[0])}: give one or the other")
        from ..bridges.opensora.conditioning import get_image_size

        return get_image_size(resolution, aspect_ratio or "9:16")
    if aspect_ratio is not None:
        raise InputError(f"{setting('aspect_ratio')} needs {setting('resolution')}, such as 240p: give both")
    sides = f"{setting('height')} and {setting('width')}"
    if text is None:
        if (height is None) != (width is None):
            missing = "height" if height is None else "width"
            raise InputError(f"{sides} belong together, and {setting(missing)} was not given: give both")
        return None if height is None or width is None else (height, width)
    if height is not None or width is not None:
        raise InputError(f"{setting('size')} says the same as {sides}: give one or the other")
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) <= DIGITS and int(part) for part in parts):
        raise InputError(
            f"{setting('size')} {text[:40]!r} is not a size: give HEIGHTxWIDTH in pixels, such as 768x1344"
        )
    return int(parts[0]), int(parts[1])


def parse_call(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Arguments of a diffusers pipeline's call from texts such as ``height=480``. None if none is given."""
    if not given:
        return None
    found: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name.strip().isidentifier():
            raise InputError(f"{setting('call')} {text[:80]!r} is no argument: give NAME=VALUE, such as height=480")
        if name.strip() in found:
            raise InputError(f"{setting('call')} gives {name.strip()} twice: give it once")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:  # a text
            found[name.strip()] = {"True": True, "False": False, "None": None}.get(value, value)
    return found


def parse_timing(interval: str | None, ramp: str | None = None, oscillate: int | None = None) -> str | None:
    """The timing of guidance as text, in the form that manifests use. None means the model's default."""
    if sum(option is not None for option in (interval, ramp, oscillate)) > 1:
        names = f"{setting('interval')}, {setting('ramp')} and {setting('oscillate')}"
        raise InputError(f"{names} all say when to guide: choose one")
    if ramp is not None and ramp.partition(":")[0] not in RAMPS:
        raise InputError(f"{setting('ramp')} {ramp!r} does not exist{nearest(ramp, RAMPS)}")
    if oscillate is not None:
        return f"oscillation:{oscillate}"
    return ramp if interval is None else f"interval:{interval}"
