"""What commands check before they load a model. Nothing here imports torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import InputError, setting

if TYPE_CHECKING:
    from pathlib import Path

    from ..guidance import Guidance
    from ..pipeline.contract import ModelPlanner
    from ..pipeline.planner import Planner
    from ..request import Choices


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
    from ..pipeline.planner import Planner
    from ..request import DIFFUSERS

    if model.startswith(DIFFUSERS):
        raise InputError(
            f"{setting('model')} {model!r} works in spectrum, match, study and tune: make single clips of it in "
            "Python, by guidon.load or guidon.reproduce"
        )

    check_device(device)
    return Planner.find(model, **parts)


def find_any_planner(model: str, device: str, parts: Mapping[str, Any] = {}) -> ModelPlanner:
    """``find_planner``, also of a diffusers pipeline: ``diffusers:FOLDER``.

    Args:
        model: a preset's name, a folder of weights, or ``diffusers:FOLDER``.
        device: what the user gave; its name is checked.
        parts: arguments of ``guidon.load``.

    Raises:
        InputError: as ``find_planner``.
    """
    from ..request import DIFFUSERS

    if not model.startswith(DIFFUSERS):
        if "call" in parts:
            raise InputError(f"{setting('call')} is for diffusers pipelines: leave it out, or give {DIFFUSERS}FOLDER")
        return find_planner(model, device, parts)
    from ..core.devices import check_device
    from ..pipeline.diffusers_planner import DiffusersPlanner, check_options

    check_device(device)
    check_options(model, parts)
    return DiffusersPlanner.find(model.removeprefix(DIFFUSERS), call=parts.get("call"), dtype=parts.get("dtype"))


def split_precisions(**precisions: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Precisions that the user gave: those with a name, which are choices of a clip, and those that are "auto".

    The latter are arguments of ``guidon.load``.

    Raises:
        InputError: there is no such precision.
    """
    from ..core.settings import validated
    from ..pipeline.precision import Arithmetic

    validated(Arithmetic, precisions, None)
    named: dict[str, Any] = {name: value for name, value in precisions.items() if value not in (None, "auto")}
    chosen: dict[str, Any] = {name: value for name, value in precisions.items() if value == "auto"}
    return named, chosen


def precisions_for(model: str, **precisions: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """``split_precisions``, also of a diffusers pipeline, which is loaded in its precision."""
    from ..request import DIFFUSERS

    if model.startswith(DIFFUSERS):
        return {}, {name: value for name, value in precisions.items() if value is not None}
    return split_precisions(**precisions)


def chosen_by(pipe: Any, chosen_here: Mapping[str, Any]) -> dict[str, Any]:
    """The precisions that a loaded model chose where they were "auto", as choices of a clip."""
    return {name: getattr(pipe.preset, name) for name, value in chosen_here.items() if value == "auto"}


def own_scale(planner: ModelPlanner, sampling: Choices) -> float:
    """The guidance scale where the user gave none: the model's, or that of its fast settings where they are asked for.

    Raises:
        InputError: a choice is not valid for the model.
    """
    return cast("float", planner.complete([""], **sampling).guidance.scale)  # a model's own is one number


def brings_weights(model: str) -> bool:
    """Whether a model needs no weights from elsewhere, so that nothing of it can be downloaded.

    Raises:
        InputError: there is no such model.
    """
    from ..models.catalogue import find_preset
    from ..models.family import Released

    return not isinstance(find_preset(model).weights, Released)


def refuse_idle_weak(weak: Path | None, guidance: Guidance) -> None:
    """Refuse a weak model that the guidance does not ask.

    Raises:
        InputError: it would have no effect.
    """
    if weak is not None and guidance.rule.weak != "model":
        raise InputError(
            f"{setting('weak')} has an effect only with {setting('guidance')} autoguidance: give both, or leave it out"
        )


def known_device(device: str) -> str | None:
    """The device if its name alone tells which memory is used; else None, until torch is there to look."""
    return "cpu" if device == "cpu" else None
