"""``python -m guidon``."""

from .cli import program

program()
