"""Imports optional libraries where they are needed. If one is missing, the error says which extra installs it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .errors import InputError, first_line

DISTRIBUTION = "guidon-diffusion"  # the name that pip knows, where Guidon was installed from a checkout, too


class Later:
    """An optional library that is imported when it is first used, because its import takes long.

    ``stats = Later("scipy.stats", "comparing settings", "study")``, then ``stats.norm``. The arguments and errors are
    those of ``require``. A library that is not installed is refused at once.
    """

    def __init__(self, module: str, purpose: str, extra: str, *, package: str | None = None) -> None:
        self._how = module, purpose, extra, package
        if find_spec(module.partition(".")[0]) is None:
            self._module()  # raises

    def _module(self) -> ModuleType:
        module, purpose, extra, package = self._how
        return require(module, purpose, extra, package=package)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module(), name)


def require(module: str, purpose: str, extra: str, *, package: str | None = None) -> ModuleType:
    """Import an optional library.

    ``cv2 = require("cv2", "measuring video", "study", package="opencv-python-headless")``

    Args:
        module: what to import; of a dotted name (``matplotlib.figure``) the submodule is returned.
        purpose: what needs it, as the subject of a sentence: "writing mp4".
        extra: the extra of this distribution that installs it.
        package: its name on the package index, if it differs from the module's.

    Raises:
        InputError: it is not installed, or it cannot be loaded.
    """
    name = module.partition(".")[0]
    install = f"pip install '{DISTRIBUTION}[{extra}]'"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == name:
            raise InputError(f"{purpose} needs {package or name}, which is not installed: {install}") from None
        raise InputError(f"{purpose} needs {package or name}, which misses {error.name}: {install}") from error
    except ImportError as error:  # such as a shared library that the system lacks
        raise InputError(f"{purpose} needs {package or name}, which cannot be loaded: {first_line(error)}") from error
