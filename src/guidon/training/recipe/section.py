"""What all sections of a recipe share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic_core import to_jsonable_python

from ...core.errors import InputError
from ...core.settings import Settings

DIFFUSION_STEPS = 1000  # timesteps of the diffusion that is trained
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def must_divide(part: int, whole: int, what: str) -> None:
    """Raise an InputError that begins with ``what`` if ``part`` does not divide ``whole``."""
    if part < 1 or whole % part:
        raise InputError(f"{what}: {whole} is no multiple of {part}")


class Section(Settings):
    """Base of the sections of a recipe. The docstring under a field is the field's description."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


def defaults(section: Settings) -> dict[str, Any]:
    """The default of each setting of a section that has one, as plain data. Sections inside it are nested.

    A version that adds a setting gives it the default with which runs are trained as by earlier versions.
    """
    found = dict[str, Any]()
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not field.is_required():
            found[name] = to_jsonable_python(field.get_default(call_default_factory=True))
        elif isinstance(value, Settings):
            found[name] = defaults(value)
    return found
