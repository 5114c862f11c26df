"""The command line, one file per command. A command imports heavy libraries inside its function, not at the top."""

import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import NoReturn

STOPPED = 130  # the exit code after Ctrl-C
SPINS = "1000"  # what GNU's OpenMP itself takes where there are more threads than cores; else it is 300,000


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; see ``guidon.cli.app.main``. Ctrl-C is answered in one line during imports too."""
    # pydantic looks for plugins in all packages that are installed, which takes time, and Guidon has none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    wait_briefly(os.environ)
    try:
        from .app import main as run
    except KeyboardInterrupt:
        print("guidon: stopped", file=sys.stderr)
        sys.exit(STOPPED)
    run(arguments)


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads of OpenMP wait for each other in a short loop and then asleep, not in a long loop.

    Torch on Linux uses GNU's OpenMP, which reads this when torch is imported. Its own long loop takes the core from the
    thread that is waited for wherever the machine has other work. What the user has set is left alone.
    """
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        environment["GOMP_SPINCOUNT"] = SPINS


def program() -> NoReturn:
    """Run the command line as the program ``guidon``, and end the process as soon as it is done.

    All files are whole by then. Python's own end would free every module of torch first, which takes a second, and
    after Ctrl-C wait for what is still imported in the background.
    """
    try:
        main()
    except SystemExit as stop:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 0)
