"""What all sections of a recipe share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter

from ...core.errors import InputError
from ...core.settings import Settings

DIFFUSION_STEPS = 1000  # timesteps of the diffusion that is trained
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
_PLAIN = TypeAdapter[Any](Any)  # makes plain data of any default


def must_divide(part: int, whole: int, what: str) -> None:
    """Raise an InputError that begins with ``what`` if ``part`` does not divide ``whole``."""
    if part < 1 or whole % part:
        raise InputError(f"{what}: {whole} is no multiple of {part}")


def refuse_for_flow(flow: str, *settings: tuple[bool, str, str]) -> None:
    """Raise an InputError if a setting is given that does nothing in a rectified flow.

    Args:
        flow: what is a rectified flow.
        settings: of each such setting, whether it is given, its name, and why it does nothing.
    """
    for given, name, why in settings:
        if given:
            raise InputError(f"{flow} is a rectified flow, and {name} is not for one, since {why}: leave it out")


class Section(Settings):
    """Base of the sections of a recipe. The docstring under a field is the field's description."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


def completed(known: Mapping[str, Any], recipe: Settings) -> dict[str, Any]:
    """Settings that an earlier version wrote, with the default of each that it did not know.

    So a new setting needs a default that changes no earlier run.

    Args:
        known: the settings of a section, as plain data. Sections inside it are nested.
        recipe: the section as it is now.
    """
    found = dict(known)
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if name not in known:
            if not field.is_required():
                found[name] = _PLAIN.dump_python(field.get_default(call_default_factory=True), mode="json")
        elif isinstance(value, Settings) and isinstance(known[name], Mapping):
            found[name] = completed(known[name], value)
    return found
