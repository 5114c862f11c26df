"""Settings files (YAML, JSON) read into strict models: an unknown key is refused with its nearest valid name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError, first_line, nearest


class Settings(BaseModel):
    """Base of every settings section: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings sections in an annotation such as ``tuple[Section, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names valid where a validation error points, walking nested sections."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))  # the number of a list's item names none
        inner = next(_models(getattr(field, "annotation", None)), None)
        if inner is not None:
            model = inner
    return list(model.model_fields)


def validated(model: type[S], values: Any, source: str) -> S:
    """``values`` as a settings object, or an InputError that names the first fault in one line."""
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected a mapping of settings, found {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = nearest(str(first["loc"][-1]), _keys_at(model, first["loc"]))
            raise InputError(f"{source}: unknown key {where!r}{hint}") from None
        if first["type"] == "missing":
            raise InputError(f"{source}: the key {where!r} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        if not where:  # it concerns several fields, and names them
            raise InputError(f"{source}: {message}") from None
        raise InputError(f"{source}: {where}: given {str(first.get('input'))[:80]!r}; {message}") from None


def read_mapping(path: Path) -> Any:
    """The parsed content of a YAML or JSON file; faults of the file are InputErrors."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:  # YAML that reads as a date may be none
        raise InputError(f"{path} is not valid {path.suffix[1:].upper()}: {first_line(error)}") from None
