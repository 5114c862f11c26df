"""What commands check before they load a model. Nothing here imports torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..request import Planner


def find_planner(model: str, device: str, parts: Mapping[str, Any] = {}) -> Planner:
    """The planner of a model, with which settings are checked.

    Args:
        model: a preset's name, or a folder of weights.
        device: what the user gave; its name is checked.
        parts: files of a released model, and how to load them: arguments of ``guidon.load``.

    Raises:
        InputError: the model does not exist, parts of it are missing, or the device is none.
    """
    from ..core.devices import check_device
    from ..request import Planner

    check_device(device)
    return Planner.find(model, **parts)


def known_device(device: str) -> str | None:
    """The device if its name alone tells which memory is used; else None, until torch is there to look."""
    return "cpu" if device == "cpu" else None
