"""Settings from YAML or JSON files, read into strict models: an unknown key is refused with its nearest valid name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError, first_line, nearest, setting


class Settings(BaseModel):
    """Base of all settings classes. Objects are frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    also_read: ClassVar[tuple[str, ...]] = ()
    """Keys that are no fields but that a validator of the class reads. Hints for a mistyped key may name them."""


S = TypeVar("S", bound=Settings)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as ``tuple[Section, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names that are valid at the place of a validation error, which may be inside nested sections."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))  # a part may also be a list index
        inner = next(_models(getattr(field, "annotation", None)), None)
        if inner is not None:
            model = inner
    return [*model.model_fields, *getattr(model, "also_read", ())]


def validated(model: type[S], values: Any, source: str | None) -> S:
    """Make a settings object from plain data.

    Args:
        model: the class to make.
        values: a mapping, such as a file's content.
        source: the file that the values come from. The error message begins with it and names the file's keys. None if
            the values come from Python or the command line. The message then names settings by ``setting``.

    Raises:
        InputError: the values are not valid. The message is one line about the first fault.
    """
    prefix, name = (f"{source}: ", str) if source else ("", setting)
    if not isinstance(values, dict):
        raise InputError(f"{prefix}expected a mapping of settings, found {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = nearest(str(first["loc"][-1]), _keys_at(model, first["loc"]))
            raise InputError(f"{prefix}unknown key {where!r}{hint}") from None
        if first["type"] == "missing":
            raise InputError(f"{prefix}the key {where!r} is missing") from None
        cause = first.get("ctx", {}).get("error")  # the exception of a validator; an InputError holds marked names
        message = cause.spelled(name) if isinstance(cause, InputError) else first["msg"].removeprefix("Value error, ")
        if not where:  # a check of several fields; its message names them
            raise InputError(f"{prefix}{message}") from None
        raise InputError(f"{prefix}{name(where)}: given {str(first.get('input'))[:80]!r}; {message}") from None


def read_mapping(path: Path) -> Any:
    """The content of a YAML or JSON file (JSON if its suffix is ``.json``).

    Raises:
        InputError: the file cannot be read, is not text, or is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:  # YAML raises ValueError for a date that does not exist
        raise InputError(f"{path} is not valid {path.suffix[1:].upper()}: {first_line(error)}") from None
