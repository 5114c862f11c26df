"""The command line: its commands, and how errors and warnings are printed."""

from __future__ import annotations

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..core.errors import InputError, shortened
from ..core.interrupts import hear_once
from ..core.limits import is_out_of_memory
from ..core.version import VERSION
from . import (
    STOPPED,
    audit,
    bench,
    calibrate_fast,
    channels,
    config,
    encode,
    evaluate,
    generate,
    inspect,
    match,
    models,
    prepare,
    spectrum,
    studio,
    study,
    train,
    tune,
)
from .command import Command, Group
from .outputs import say
from .together import fall_silent, is_silent, let_first_speak

DEFECT = 70  # the exit code of a defect, EX_SOFTWARE of sysexits.h
_STYLE: dict[str, Any] = {"cls": Group, "rich_markup_mode": None}
_ONE_LINE = 1000  # columns of help that is no terminal's: each option is on one line, for grep

# Panels of commands in the help, in the order in which a newcomer needs them.
MAKE, MEASURE, WEIGHTS, CODE = "Make videos", "Measure what guidance does", "Models and weights", "Other people's code"

app = typer.Typer(
    name="guidon",
    help="Classifier-free guidance for latent video and image diffusion: generate, and measure what guidance does.",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),  # --negative_prompt is --negative-prompt
        "max_content_width": _ONE_LINE,  # the help is as wide as the terminal
    },
    **_STYLE,
)
studies = typer.Typer(
    add_completion=False, help="Compare settings on the same prompts and noise, with statistics.", **_STYLE
)


def add(to: typer.Typer, command: Callable[..., None], example: str, panel: str | None = None) -> None:
    """Add a command. The function's name is the command's name, and its parameters are the options."""
    to.command(cls=Command, epilog=f"Example:\n\n  {example}", rich_help_panel=panel)(command)


add(app, generate.generate, generate.EXAMPLE, MAKE)
add(app, studio.studio, studio.EXAMPLE, MAKE)
add(app, evaluate.evaluate, evaluate.EXAMPLE, MEASURE)
add(app, spectrum.spectrum, spectrum.EXAMPLE, MEASURE)
add(app, channels.channels, channels.EXAMPLE, MEASURE)
add(app, match.match, match.EXAMPLE, MEASURE)
add(app, tune.tune, tune.EXAMPLE, MEASURE)
add(app, calibrate_fast.calibrate_fast, calibrate_fast.EXAMPLE, MEASURE)
app.add_typer(studies, name="study", rich_help_panel=MEASURE)
add(studies, study.run, study.EXAMPLE_RUN)
add(studies, study.report, study.EXAMPLE_REPORT)
add(app, bench.bench, bench.EXAMPLE, MEASURE)
add(app, models.models, models.EXAMPLE, WEIGHTS)
add(app, inspect.inspect, inspect.EXAMPLE, WEIGHTS)
add(app, encode.encode, encode.EXAMPLE, WEIGHTS)
add(app, prepare.prepare, prepare.EXAMPLE, WEIGHTS)
add(app, train.train, train.EXAMPLE, WEIGHTS)
add(app, audit.audit, audit.EXAMPLE, CODE)
add(app, config.config, config.EXAMPLE, CODE)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(VERSION)
        raise typer.Exit
    _help_without_command(context)


@studies.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@functools.cache
def command_line() -> Any:
    """All commands with their options, which typer reads from the signatures."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Bad input, a fault of the system and full memory print one line on stderr and exit with 2. Ctrl-C exits with 130.
    Any other error is a defect of Guidon: a report is written, one line names it, and the exit code is 70. If
    ``GUIDON_DEBUG`` is set in the environment, every error but bad input is raised instead.
    """
    debug = bool(os.environ.get("GUIDON_DEBUG"))
    _open_closed_streams()
    hear_once()
    if silent := is_silent(sys.argv[1:] if arguments is None else arguments):
        fall_silent()
    width = None if sys.stdout.isatty() else _ONE_LINE
    code: Any = 2
    try:
        _require_working_folder()
        with _warnings_in_one_line():
            ended = command_line()(arguments, prog_name="guidon", standalone_mode=False, terminal_width=width)
        sys.stdout.flush()  # what cannot be printed is an error of the command
        code = ended
        if code == STOPPED:  # typer was stopped while it read the arguments
            say("stopped")
    except InputError as error:
        say(str(error))
    except (typer.Abort, KeyboardInterrupt) as error:  # Abort is a RuntimeError: it must be caught before the others
        say(str(error) or "stopped")
        code = STOPPED
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError):
            where = f" ({error.filename})" if error.filename else ""
            say(shortened(f"{error.strerror or error}{where}"))
        elif is_out_of_memory(error):
            say("the device's memory is full: denoise fewer clips together (--batch-size, --block, block in a study)")
        else:
            from .crash import what_failed  # not above: it imports much that every command would wait for

            say(what_failed(error, sys.argv[1:] if arguments is None else arguments, command_line()))
            code = DEFECT
    if silent and code not in (0, None, STOPPED):
        let_first_speak()
    sys.exit(code or 0)


def _open_closed_streams() -> None:
    """Open /dev/null in place of a standard stream that is closed, and let stdout escape what it cannot encode.

    A file that takes the number of a closed stream would receive what libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is not None and sys.stdout is sys.__stdout__ and not sys.stdout.isatty():
        sys.stdout = _for_any_reader(sys.__stdout__)
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class _Stdout(io.FileIO):
    """Stdout whose reader may go away, as ``head`` does: what is printed then is dropped, and the work goes on.

    Any other fault is raised once, and not again when Python ends.
    """

    broken = False

    def write(self, data: Any, /) -> int:
        try:
            return memoryview(data).nbytes if self.broken else super().write(data)
        except OSError as error:
            self.broken = True
            if not isinstance(error, BrokenPipeError):
                raise
            return memoryview(data).nbytes


def _for_any_reader(stream: Any) -> io.TextIOWrapper:
    """Stdout that does not fail once nobody reads it."""
    stream.flush()
    file = io.BufferedWriter(_Stdout(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=stream.line_buffering)


def _require_working_folder() -> None:
    """Refuse a working folder that was deleted, where a library of torch's would end the process."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the working folder does not exist any more: go to another folder") from None


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings in the block as one line on stderr, like errors. A line that each part of a run gives comes once.

    Python shows a warning once for each line of code, but forgets that wherever a library changes its filters.
    """
    said = set[str]()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if (line := str(message)) not in said:
            said.add(line)
            say(line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
