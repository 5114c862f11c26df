"""``python -m guidon``."""

from .cli import main

main()
