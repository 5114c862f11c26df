"""``guidon config``: an Open-Sora inference configuration as ``guidon generate`` commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..core.errors import InputError, setting
from .options import option

if TYPE_CHECKING:
    from ..bridges.opensora.commands import Command, Translation, Version

EXAMPLE = "guidon config configs/opensora/inference/16x256x256.py"
VERSIONS = ("1.0", "1.1", "1.2")


def config(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .py file of Open-Sora's configs/*/inference; nothing in it is run."),
    ],
    version: Annotated[
        str | None,
        option(
            "Options",
            "VERSION",
            "The version of Open-Sora that the file is for, 1.0, 1.1 or 1.2: without cfg_channel, 1.0 guides three "
            "channels, and later ones all.",
            "--open-sora",
            default="found out",
            values=VERSIONS,
        ),
    ] = None,
    json: Annotated[bool, option("Options", None, "Print JSON.", "--json")] = False,
) -> None:
    """Turn an Open-Sora inference configuration into guidon commands.

    Prints the `guidon generate` commands that do the same, and as comments what Guidon leaves out, and why.
    """
    from ..bridges.opensora.commands import translate
    from ..bridges.opensora.config import read_config

    if version is not None and version not in VERSIONS:
        raise InputError(f"{setting('version')} {version!r} does not exist; valid: {', '.join(VERSIONS)}")
    found = translate(read_config(file), file, cast("Version | None", version))
    if not found.commands:
        name, why = next(iter(found.left_out.items()))
        raise InputError(f"{file} asks for what no command does: {name}: {why}")
    print(_as_json(found) if json else _as_text(found))


def _words(command: Command) -> list[str]:
    """The words of a command line."""
    words = ["guidon", "generate", *command.prompts]
    for name, value in command.settings:
        words += [f"--{name.replace('_', '-')}", *([] if value is None else [value])]
    return words


def _as_text(found: Translation) -> str:
    """Lines for a shell."""
    lines = [shlex.join(_words(command)) for command in found.commands]
    return "\n".join([*lines, *(f"# left out: {name}: {why}" for name, why in found.left_out.items())])


def _as_json(found: Translation) -> str:
    import json

    commands = [_words(command) for command in found.commands]
    return json.dumps({"version": found.version, "commands": commands, "left_out": found.left_out}, indent=2)
