"""Lines about what was chosen, and warnings that point at the line of the user's program that called guidon."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from .errors import InputWarning

_FOLDER = str(Path(__file__).parents[1]) + os.sep
_DECORATORS = ("torch", "contextlib")  # modules whose decorators stand between functions of guidon


def note(message: str) -> None:
    """Say on stderr, in a line, what was chosen for the user."""
    with suppress(OSError, ValueError):  # stderr is full or closed: that must not end the work
        print(f"guidon: {message}", file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Show a warning at the nearest line on the call stack that is neither guidon's nor one of its decorators'.

    ``warnings.warn(skip_file_prefixes=...)`` does this from Python 3.12 on.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_FOLDER)
        or str(frame.f_globals.get("__name__")).partition(".")[0] in _DECORATORS
    ):
        frame = frame.f_back
    place = frame.f_globals
    registry = place.setdefault("__warningregistry__", {})  # Python shows a warning once for each line in it
    warnings.warn_explicit(
        InputWarning(message), InputWarning, frame.f_code.co_filename, frame.f_lineno, place.get("__name__"), registry
    )
