"""The command line, one file per command. A command imports heavy libraries inside its function, not at the top."""

from .app import app, main

__all__ = ["app", "main"]
