"""Names of a package that are imported when one of them is first used.

Importing torch takes about 2 s, and checking settings does not need it. The packages whose modules import torch import
them this way, so that it is quick to import the package, or a module in it that does not need torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def imported_later(package: str, *modules: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package: it finds the names of ``__all__`` that the package has not imported.

    Args:
        package: the package's ``__name__``.
        modules: the modules in it that hold these names.
    """

    def find(name: str) -> Any:
        if name in sys.modules[package].__all__:
            for module in modules:
                found = import_module(f".{module}", package)
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
