"""The command line: one thin subcommand a capability. Heavy imports happen inside the command that needs them."""

from . import making, measuring
from .app import app, main

__all__ = ["app", "main", "making", "measuring"]
