"""Reads files that may be damaged, hostile, or no files at all. Every failure becomes one line of ``InputError``.

Three things guard every file that Guidon reads. ``regular_file`` refuses a path that is no regular file, or a file
that is too large, before it is opened. A ``Limit`` refuses a small file that would unpack to something large.
``reading`` turns every exception of a parser into an ``InputError``, so that no reader needs a list of exceptions of
its own::

    path = regular_file(path, "a recipe", TEXT_BYTES)
    with reading(path, "a recipe"):
        values = parse(path.read_text())
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, first_line

ADVICE = "check that it is the right file and whole"
DIGITS = 100
"""Digits of a number in a text file. No setting needs more, and arithmetic on thousands of digits is slow."""
_REASON = 300  # characters of a library's message that are shown
_JOINERS = "\u200c\u200d"  # belong to the spelling of Persian, of Indian languages and of emoji
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Limit:
    """How much a file may ask for. The user can raise it with an environment variable."""

    variable: str
    """The environment variable that replaces the default, such as "GUIDON_MAX_PIXELS"."""
    default: int
    unit: str
    """What is counted, in the plural."""

    @property
    def value(self) -> int:
        """The limit that holds now.

        Raises:
            InputError: the environment variable is not a positive whole number.
        """
        text = os.environ.get(self.variable, "")
        if not text:
            return self.default
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) > 0):
            raise InputError(
                f"the environment variable {self.variable} is {text[:40]!r}, expected a positive whole number of "
                f"{self.unit}: correct it or unset it"
            )
        return int(text)

    def check(self, count: int, path: Path) -> None:
        """Refuse a file that asks for more.

        Raises:
            InputError: the message says what the file asks for, the limit, and how to raise it.
        """
        if count > self.value:
            raise InputError(
                f"{path} asks for {count:,} {self.unit}, the limit is {self.value:,}: if you trust the file, set the "
                f"environment variable {self.variable} to a higher number"
            )


TEXT_BYTES = Limit("GUIDON_MAX_TEXT_BYTES", 1 << 24, "bytes of text")
"""The size of a text file: settings, JSON, prompts, logs, source code."""
PIXELS = Limit("GUIDON_MAX_PIXELS", 1 << 28, "pixels")
"""The pixels of a decoded clip, all frames together: 2**28 are 12 s of 1280 x 720 at 24 frames per second."""
FRAME_PIXELS = Limit("GUIDON_MAX_FRAME_PIXELS", 1 << 26, "pixels in a frame")
"""The pixels of one decoded frame or picture: 2**26 are 8192 x 8192. Decoders hold a frame several times."""
DECODED_BYTES = Limit("GUIDON_MAX_DECODED_BYTES", 1 << 28, "decoded bytes")
"""What the compressed arrays of a NumPy file may unpack to."""


@contextmanager
def reading(path: Path, what: str, advice: str = ADVICE) -> Iterator[None]:
    """Turn every exception of the block into an ``InputError`` that names the file, the reason and what to do.

    An ``InputError`` of the block passes through, and so does Ctrl-C. Keep the block to the parsing of one file: a
    mistake in our own code inside it would look like a damaged file. The original exception stays as the cause.

    Args:
        path: the file.
        what: what it should be, with an article: "a recipe".
        advice: what the user can do.

    Raises:
        InputError: the block failed.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a parser that is written in Rust panics with a BaseException
        raise InputError(f"{path} cannot be read as {what}: {_reason(error)}; {advice}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(text := getattr(error, "strerror", None), str):  # an OSError, or an error of FFmpeg
        return text
    if isinstance(error, KeyError):
        return f"{str(error)[:_REASON]} is missing or unknown"
    return printable(first_line(error))[:_REASON]


def printable(text: str) -> str:
    """The text with every control character escaped, so that a file's content cannot control a terminal."""
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text)


def regular_file(path: Path, what: str, at_most: Limit | int | None = None) -> Path:
    """The path, after a check that it names a regular file of a sensible size.

    Nothing is opened unless the size is 0: files of /proc say so too, and some of them never end.

    Args:
        path: the file. Symbolic links are followed.
        what: what it should be, with an article: "a recipe".
        at_most: the largest size in bytes; None for any size.

    Raises:
        InputError: it is missing, a folder, a pipe, a device, a socket, too large, or does not tell its size.
    """
    with reading(path, what, "check the path"):
        found = path.stat()
        kind = None if stat.S_ISREG(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        if kind is None and not found.st_size and not _is_empty(path):
            kind = "made by the system and does not tell its size"
    if kind is not None:
        raise InputError(f"{path} cannot be read as {what}: it is {kind}; give a file")
    if isinstance(at_most, Limit):
        at_most.check(found.st_size, path)
    elif at_most is not None and found.st_size > at_most:
        raise InputError(
            f"{path} cannot be read as {what}: it has {found.st_size:,} bytes, expected at most {at_most:,}; {ADVICE}"
        )
    return path


def _is_empty(path: Path) -> bool:
    """Whether nothing can be read from a file now. It does not wait for content."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return not os.read(descriptor, 8)  # some files of the system give no less
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def is_there(path: Path, what: str) -> bool:
    """Whether there is anything of that name. A name that no file can have is refused.

    Raises:
        InputError: the name is too long, or a part of it cannot be looked into.
    """
    with reading(path, what, "check the path"):
        return path.exists()


def read_text(path: Path, what: str, at_most: Limit | int = TEXT_BYTES) -> str:
    """The content of a text file in UTF-8, without a byte order mark, which some editors write.

    Args:
        path: the file.
        what: what it should be, with an article.
        at_most: the largest size in bytes.

    Raises:
        InputError: it is no regular file, too large, or not text.
    """
    regular_file(path, what, at_most)
    with reading(path, what):
        return path.read_text(encoding="utf-8-sig")


def read_json(path: Path, what: str, at_most: Limit | int = TEXT_BYTES) -> Any:
    """The content of a JSON file. The arguments are those of ``read_text``.

    Raises:
        InputError: it cannot be read, is not JSON, or gives a key twice.
    """
    return parse_json(read_text(path, what, at_most), path, what)


def read_object(path: Path, what: str, at_most: Limit | int = TEXT_BYTES) -> dict[str, Any]:
    """The content of a JSON file that holds an object. The arguments are those of ``read_text``.

    Raises:
        InputError: it cannot be read, is not JSON, gives a key twice, or holds something else.
    """
    return require_keys(read_json(path, what, at_most), path, what)


def require_keys(values: Any, path: Path, what: str) -> dict[str, Any]:
    """The content of a file, which must be keys with values.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(values, dict):
        raise InputError(
            f"{path} cannot be read as {what}: it holds {kind_of(values)}, expected keys with values; {ADVICE}"
        )
    return values


def kind_of(value: Any) -> str:
    """What a value of a file is, in words."""
    kinds = {dict: "keys with values", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def parse_json(text: str, path: Path, what: str) -> Any:
    """JSON from a file.

    Raises:
        InputError: it is empty, is not JSON, or gives a key twice.
    """
    with reading(path, what):
        if not text.strip():
            raise ValueError("it is empty")
        return json.loads(text, object_pairs_hook=_once, parse_int=_short)


def _short(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its keys and values. A key must not be given twice: JSON does not say which value counts."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:60]!r} is given twice")
        values[key] = value
    return values
