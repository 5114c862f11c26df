"""Presets by name: recommended weights, sampler, steps, guidance and sizes, each with its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, nearest
from . import registry
from .family import Facts, Preset

if TYPE_CHECKING:
    import torch

    from .model import Model
    from .sources import Sources


def presets() -> dict[str, Preset[Any]]:
    """Every preset of every family, by name."""
    return {preset.name: preset for family in registry.FAMILIES for preset in family.presets}


def find_preset(name: str) -> Preset[Any]:
    """The preset of that name, or the preset that a family makes for a folder of weights.

    Raises:
        InputError: it is neither the name of a preset nor a model folder.
    """
    known = presets()
    if name in known:
        return known[name]
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"model {name!r} is neither a preset nor a folder{nearest(name, known)}")
    for family in registry.FAMILIES:
        if (preset := family.adopt(folder)) is not None:
            return preset
    layouts = " and no ".join(family.folder for family in registry.FAMILIES if family.folder)
    raise InputError(f"{folder} is not a model folder: it holds no {layouts}")


def files_of(path: Path) -> list[Path]:
    """What ``inspect_checkpoint`` describes one by one: the files of a model folder, or the path itself.

    Args:
        path: a file, a folder, or the name of a preset whose weights are in the package.
    """
    preset = presets().get(str(path))
    if preset is not None and isinstance(preset.weights, Path) and not path.exists():
        path = preset.weights
    for family in registry.FAMILIES:
        if found := family.files(path):
            return found
    return [path]


def find_facts(preset: Preset[Any], sources: Sources) -> Facts:
    """What is known of a preset's model before its weights are read. It needs no torch, and downloads nothing.

    Raises:
        InputError: files are missing (all of them, and where to get them), or are not what the preset needs.
    """
    return registry.find_family(preset.family).facts(preset, sources)


def find_model(preset: Preset[Any], sources: Sources, device: torch.device) -> Model:
    """The stages of a preset's model. Small files are read and checked now, large ones when they are first used.

    Raises:
        InputError: files are missing (which, and where to get them), or are not what the preset needs.
    """
    return registry.find_family(preset.family).find_model(preset, sources, device)
