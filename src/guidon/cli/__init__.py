"""The command line, one file per command. A command imports heavy libraries inside its function, not at the top."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

STOPPED = 130  # the exit code after Ctrl-C


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; see ``guidon.cli.app.main``. Ctrl-C is answered in one line during imports too."""
    # pydantic looks for plugins in all packages that are installed, which takes time, and Guidon has none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from .app import main as run
    except KeyboardInterrupt:
        print("guidon: stopped", file=sys.stderr)
        sys.exit(STOPPED)
    run(arguments)


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
