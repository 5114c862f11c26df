"""The command line, one file per command. A command imports heavy libraries inside its function, not at the top."""

import sys
from typing import NoReturn

STOPPED = 130  # the exit code after Ctrl-C


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; see ``guidon.cli.app.main``. Ctrl-C is answered in one line during imports too."""
    try:
        from .app import main as run
    except KeyboardInterrupt:
        print("guidon: stopped", file=sys.stderr)
        sys.exit(STOPPED)
    run(arguments)
