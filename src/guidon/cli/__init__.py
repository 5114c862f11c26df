"""The command line: a file per command. Heavy imports happen inside the function of the command that needs them."""

from .app import app, main

__all__ = ["app", "main"]
