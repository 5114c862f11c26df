"""Presets by name: recommended weights, sampler, steps, guidance and sizes, each with its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, nearest, setting
from . import registry
from .adapters.files import ADAPTER_WEIGHTS
from .family import Facts, Preset, Released

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
    if (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is a pipeline of diffusers: give diffusers:{folder}")
    if any((each / ADAPTER_WEIGHTS).is_file() for each in (folder, folder / "adapter")):
        raise InputError(f"{folder} holds adapters: give it as {setting('lora')}, and the model that they are for")
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
    return max((family.files(path) for family in registry.FAMILIES), key=len) or [path]


def find_facts(preset: Preset[Any], sources: Sources) -> Facts:
    """What is known of a preset's model before its weights are read. It needs no torch, and downloads nothing.

    Raises:
        InputError: files are missing (all of them, and where to get them), or are not what the preset needs; or the
            weak model does not go with it.
    """
    family = registry.find_family(preset.family)
    facts = family.facts(preset, sources.model_copy(update={"weak": None, "lora": ()}))
    for adapters in sources.lora:
        adapters.find()
    if sources.lora:
        facts = replace(facts, distilled=())  # its matrices were trained for the network as it is
    if sources.weak is None:
        return facts
    weak_preset, weak_sources = _weak(preset, sources, sources.weak)
    weaker = registry.find_family(weak_preset.family).facts(weak_preset, weak_sources)
    for what in ("latent_shape", "timesteps", "path"):
        ours, theirs = getattr(facts, what), getattr(weaker, what)
        if ours != theirs:
            raise _no_weak(sources.weak, f"its {what.replace('_', ' ')} is {theirs}, that of {preset.name} is {ours}")
    return replace(facts, has_weak=True)


def find_model(preset: Preset[Any], sources: Sources, device: torch.device) -> Model:
    """The stages of a preset's model. Small files are read and checked now, large ones when they are first used.

    Raises:
        InputError: files are missing (which, and where to get them), or are not what the preset needs; or the weak
            model does not go with it.
    """
    family = registry.find_family(preset.family)
    model = family.find_model(preset, sources.model_copy(update={"weak": None, "lora": ()}), device)
    if sources.lora:
        from .adapters.merging import with_adapters

        model = replace(with_adapters(model, sources.lora), facts=replace(model.facts, distilled=()))
    if sources.weak is None:
        return model
    facts = find_facts(preset, sources)
    weak_preset, weak_sources = _weak(preset, sources, sources.weak)
    weak = registry.find_family(weak_preset.family).find_model(weak_preset, weak_sources, device)
    if weak.hashes == model.hashes:
        raise _no_weak(sources.weak, f"it has the weights of {preset.name} itself")
    ours, theirs = model.process.parameterization, weak.process.parameterization
    if ours != theirs:
        raise _no_weak(sources.weak, f"it predicts {theirs}, {preset.name} predicts {ours}")
    if not model.schedule.is_same(weak.schedule):
        raise _no_weak(sources.weak, f"it was trained on other noise levels than {preset.name}")
    return replace(model, weak=weak, facts=facts)


def _weak(preset: Preset[Any], sources: Sources, path: Path) -> tuple[Preset[Any], Sources]:
    """The preset and the sources of the weak model."""
    if isinstance(preset.weights, Released):
        return preset, sources.model_copy(update={"checkpoint": path, "weak": None})
    from .sources import READERS, Sources

    weak = find_preset(str(path))
    shared = ("download", *READERS) if registry.find_family(weak.family).reads_captions(weak) else ()
    return weak, Sources(offload=sources.offload, **{name: getattr(sources, name) for name in shared})


def _no_weak(path: Path, why: str) -> InputError:
    return InputError(f"{setting('weak')} {path} cannot be the weak model: {why}: give another")
