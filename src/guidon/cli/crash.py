"""The report of a defect: what an engineer needs to find the cause, without the user's prompts."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.version import VERSION

LIBRARIES = ("torch", "numpy", "diffusers", "transformers", "safetensors", "pydantic", "typer", "av", "pillow")
PRIVATE = ("--negative-prompt", "--class", "--prompt", "--caption", "--call")  # options whose value is the user's text
_HIDDEN = "<hidden>"
_READ_AT_MOST = 1 << 20  # characters of a prompts file whose lines are hidden


def what_failed(error: BaseException, arguments: Sequence[str], root: Any) -> str:
    """The one line that tells the user about an unforeseen error."""
    path = write_report(error, arguments, root)
    what = f"this is a defect of Guidon ({type(error).__name__})"
    if path is None:
        return f"{what}; no report could be written: set GUIDON_DEBUG=1 to see where it happened"
    return f"{what}: please report it with the file {path}, in which prompts are hidden"


def write_report(error: BaseException, arguments: Sequence[str], root: Any) -> Path | None:
    """Write the report of an unforeseen error into the system's folder for temporary files.

    It holds versions, the command line and the traceback. Prompts of the command line and of a prompts file are hidden
    in both. Prompts of other files, such as a study's, are known only as quoted texts of several words in the error's
    message.

    Args:
        error: what was raised.
        arguments: the words of the command line.
        root: the parser of the command line, which knows the options.

    Returns:
        The file, which only this user can read; None if it cannot be written. No error is raised.
    """
    try:
        text = _report(error, arguments, root)
        name = f"guidon-crash-{time.strftime('%Y%m%d-%H%M%S')}-"
        descriptor, path = tempfile.mkstemp(".txt", name)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return Path(path)
    except Exception:  # a report that fails must not hide the error
        return None


def _report(error: BaseException, arguments: Sequence[str], root: Any) -> str:
    words, texts = _command_line(arguments, root)
    lines = [
        f"guidon {VERSION}, Python {platform.python_version()}, {platform.platform()}",
        ", ".join(f"{name} {version}" for name, version in _versions()),
        f"command: guidon {' '.join(words)}",
        "",
    ]
    for line in traceback.format_exception(error):
        lines += [part if part.startswith(" ") else _without_quotes(part) for part in line.rstrip("\n").split("\n")]
    report = "\n".join(lines) + "\n"
    for text in sorted({*texts, *_lines_of_files(arguments)}, key=len, reverse=True):
        if len(text) > 3:  # a shorter one is part of other words
            report = report.replace(text, _HIDDEN).replace(repr(text)[1:-1], _HIDDEN)
    return report


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _command_line(arguments: Sequence[str], root: Any) -> tuple[list[str], list[str]]:
    """The words of the command line with the user's texts hidden, and these texts."""
    shown, hidden = list[str](), list[str]()
    command: Any = root
    value_of = ""  # the option whose value comes next
    for word in arguments:
        commands: Mapping[str, Any] = getattr(command, "commands", {})
        name, sign, value = word.partition("=")
        name = name.replace("_", "-")  # a command takes both spellings
        if value_of:
            private, value_of = value_of in PRIVATE, ""
            shown.append(_HIDDEN if private else word)
            hidden += [word, value] * private  # --call NAME=TEXT
        elif word in commands:
            command = commands[word]
            shown.append(word)
        elif word.startswith("--") and _takes_value(command, name) is not None:
            private = name in PRIVATE and bool(sign)
            shown.append(f"{name}={_HIDDEN}" if private else word)
            hidden += [value, value.partition("=")[2]] * private
            value_of = name if _takes_value(command, name) and not sign else ""
        else:
            shown.append(_HIDDEN)
            hidden.append(word)
    return shown, hidden


def _takes_value(command: Any, name: str) -> bool | None:
    """Whether an option takes a value; None if the command has no such option."""
    for param in command.params:
        if name in (*param.opts, *param.secondary_opts):
            return not getattr(param, "is_flag", False)
    return False if name == "--help" else None


def _lines_of_files(arguments: Sequence[str]) -> Iterator[str]:
    """The prompts of files that the command line names."""
    for option, word in zip(arguments, (*arguments[1:], ""), strict=True):
        name, _, value = option.partition("=")
        if name.replace("_", "-") == "--prompts-file" and Path(value or word).is_file():
            with Path(value or word).open(encoding="utf-8", errors="replace") as file:
                yield from (line.strip() for line in file.read(_READ_AT_MOST).splitlines())


def _without_quotes(line: str) -> str:
    """A line of an error's message. Quoted texts of several words are hidden, because they may be prompts."""

    def hidden(found: re.Match[str]) -> str:
        quote, text = found[1], found[2]
        return quote + (_HIDDEN if " " in text else text) + quote

    return re.sub(r"""(['"])(.*?)\1""", hidden, line)
