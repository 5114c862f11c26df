"""The error for bad input, names of settings in its message, and hints for mistyped names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

LONGEST = 80  # characters of a value that a message quotes
CLOSE = 0.57  # how alike a mistyped name and a valid one must be; below, a hint is more often wrong than right
_LONGEST_WORD = 300  # characters: no file of any system has a longer name
_MARK = "\x1f"  # marks the start and end of a setting's name inside a message; never shown


class InputError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    A message names a setting with ``setting("cfg_scale")``. ``str(error)`` shows the Python name, ``cfg_scale``. The
    command line calls ``spelled`` to show its own option instead. It prints one line and exits with code 2.
    """

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message with every setting's name replaced by ``spell(name)``."""
        return shortened(_spelled(super().__str__(), spell))

    def __str__(self) -> str:
        return self.spelled(lambda name: name)


class InputWarning(UserWarning):
    """A warning about what was chosen. Settings in its message are marked and spelled as in an ``InputError``."""

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message with every setting's name replaced by ``spell(name)``."""
        return _spelled(super().__str__(), spell)

    def __str__(self) -> str:
        return self.spelled(lambda name: name)


def _spelled(message: str, spell: Callable[[str], str]) -> str:
    return re.sub(f"{_MARK}(.*?){_MARK}", lambda found: spell(found[1]), message)


def setting(name: str) -> str:
    """Mark the name of a setting in the message of an error or a warning: the command line then shows its option."""
    return f"{_MARK}{name}{_MARK}"


def written(value: object, write: Callable[[object], str] = repr) -> str:
    """A value as text for a message. Python refuses to write out numbers of thousands of digits."""
    try:
        return write(value)
    except ValueError:
        return "a number of thousands of digits"


def quoted(value: object) -> str:
    """A value as text for a message, on one line, cut if it is long."""
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else f"{value[:LONGEST]}…")
    text = " ".join(written(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def shortened(message: str) -> str:
    """A message in which long quoted values are cut, and so are words that are longer than any name of a file."""
    message = re.sub(r"(?<!\w)(['\"])(.*?)\1(?!\w)", _cut, message, flags=re.DOTALL)
    return re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda found: f"{found[0][:LONGEST]}…", message)


def _cut(found: re.Match[str]) -> str:
    quote, text = found[1], found[2]
    return found[0] if len(text) <= LONGEST + 1 else f"{quote}{text[:LONGEST]}…{quote}"


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the error's type if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name: `` (did you mean 'x'?)``, or the valid names when none is close."""
    names = [str(v) for v in valid]
    tried = (str(name), str(name).lower())
    close = [found for text in tried for found in difflib.get_close_matches(text, names, n=1, cutoff=CLOSE)]
    return f" (did you mean {close[0]!r}?)" if close else f"; valid: {', '.join(map(_listed, names))}"


def _listed(name: str) -> str:
    """A name in a list of names: quoted if it holds spaces or commas, which would not show where it ends."""
    return repr(name) if set(name) & set(" ,") else name
