"""The one error users see, and the nearest valid name for the one they mistyped."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    The command line prints it as one line and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, as one line: its first, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name: `` (did you mean 'x'?)``, or the valid names when none is close."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f"; valid: {', '.join(names)}"
