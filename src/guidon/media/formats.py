"""The formats of clips, and what a file can hold. It needs neither numpy nor a library of a format."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, cast

from ..core.errors import InputError, nearest, quoted, setting
from ..core.extras import require
from ..core.reading import FRAME_PIXELS, PIXELS

FORMATS = ("mp4", "gif", "webp", "frames", "png")


def check_format(format: str) -> None:
    """Refuse a format that does not exist.

    Raises:
        InputError: the message says which formats exist.
    """
    if format not in FORMATS:
        raise InputError(f"{setting('format')} {format!r} does not exist{nearest(format, FORMATS)}")


def check_library(format: str) -> None:
    """Refuse a format whose library is not installed.

    Raises:
        InputError: the message says what to install.
    """
    if format == "mp4":
        require("av", "writing mp4", "video")


def check_upscale(factor: Any, frames: int, height: int, width: int) -> None:
    """Refuse an enlargement that Guidon itself would not read again.

    Raises:
        InputError: the message says how large the frames would be, and what fits.
    """
    name = setting("upscale")
    if isinstance(factor, bool) or not isinstance(factor, Integral) or int(factor) < 1:
        raise InputError(f"{name} {quoted(factor)} is not a factor: give a whole number of at least 1")
    factor = int(factor)
    most = math.isqrt(min(PIXELS.value // (frames * height * width), FRAME_PIXELS.value // (height * width)))
    if factor > max(most, 1):
        raise InputError(
            f"{name} {factor} makes {frames} frames of {height * factor}x{width * factor} pixels, more than Guidon "
            f"reads: give at most {max(most, 1)}"
        )


def check_fps(fps: Any) -> None:
    """Refuse a rate that files cannot hold.

    Raises:
        InputError: it is not from 0.1 to 1000.
    """
    if isinstance(fps, bool) or not isinstance(fps, Real) or not 0.1 <= cast("float", fps) <= 1000:
        raise InputError(f"{setting('fps')} {quoted(fps)} is not a rate: give a number from 0.1 to 1000")
