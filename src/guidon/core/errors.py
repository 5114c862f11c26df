"""The one error that users see, how it names a setting, and the nearest valid name for a mistyped one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

_MARK = "\x1f"  # around the name of a setting inside a message; never shown


class InputError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    A message names a setting by ``setting("cfg_scale")``. ``str(error)`` shows the plain name, as Python spells it. The
    command line shows the option instead, by ``spelled``, prints one line and exits with code 2.
    """

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message with every setting's name replaced by ``spell(name)``."""
        return re.sub(f"{_MARK}(.*?){_MARK}", lambda found: spell(found[1]), super().__str__())

    def __str__(self) -> str:
        return self.spelled(lambda name: name)


def setting(name: str) -> str:
    """The name of a setting for the message of an ``InputError``; each face spells it in its own way."""
    return f"{_MARK}{name}{_MARK}"


def first_line(error: BaseException) -> str:
    """What a library's error says, as one line: its first line, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped name: `` (did you mean 'x'?)``, or the valid names when none is close."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f"; valid: {', '.join(names)}"
