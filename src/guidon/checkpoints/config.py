"""The configuration in the header of a component's file. It is read without the weights, and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..core.errors import InputError, nearest
from ..core.reading import is_there, parse_json, reading
from .finding import read_header

FORMAT = "guidon"  # the value of "format" in the header of our files
AGAIN = "copy or train it again"
MOST_NUMBERS = 64  # of one setting of a configuration, such as the channels of an autoencoder's levels
LARGEST = 1 << 31  # no size in a configuration is as large
C = TypeVar("C")


def read_config(path: Path, kind: str) -> dict[str, Any]:
    """The configuration of a component, as plain data. Whether the weights are whole is not looked at.

    Raises:
        InputError: the file does not exist, its header is damaged, or it is no component of that kind.
    """
    refuse_absent(path, kind)
    header = read_header(path)
    refuse_other_kind(path, header, kind)
    config = parse_json(header.get("config", "{}"), path, "a component")
    if not isinstance(config, dict):
        raise InputError(f"{path} cannot be read as a component: its configuration is no JSON object; {AGAIN}")
    return config


def configured(path: Path, of: type[C], values: Mapping[str, Any]) -> C:
    """The configuration object of a component, from plain data.

    Raises:
        InputError: a key is unknown to the object, missing, of another type, or of a senseless value.
    """
    with reading(path, "a component", AGAIN):
        return make_config(of, values, f"{path}: its configuration does not fit this version of Guidon")


def refuse_absent(path: Path, kind: str) -> None:
    """Raise an InputError if there is no file."""
    if not is_there(path, f"a {kind}"):
        raise InputError(f"{path} is not there: expected a {kind} written by `guidon train`")


def refuse_other_kind(path: Path, header: Mapping[str, str], kind: str) -> None:
    """Raise an InputError if a safetensors header is not that of a component of this kind."""
    if header.get("format") != FORMAT:
        raise InputError(
            f"{path} is a safetensors file, but not one of Guidon's: expected a {kind} written by `guidon train`"
        )
    if header.get("kind") != kind:
        raise InputError(f"{path} holds a {header.get('kind')!r}, expected a {kind!r}")


def is_component(header: Mapping[str, str]) -> bool:
    """Whether a safetensors header is that of a component, even if the word for its format is damaged."""
    return header.get("format") == FORMAT or {"kind", "config", "digest"} <= header.keys()


@cache
def _adapter(of: type) -> TypeAdapter[Any]:
    """What checks the fields of a dataclass. Making it takes longer than using it."""
    return TypeAdapter(of)


def make_config(of: type[C], values: Mapping[str, Any], fault: str) -> C:
    """A configuration object of plain data, with every type and range checked.

    Args:
        of: a frozen dataclass.
        values: its fields by name, such as those of a file.
        fault: what an error message begins with.

    Raises:
        InputError: a name is unknown or missing, or a value is of another type or makes no sense.
    """
    valid = [field.name for field in fields(of)]  # type: ignore[arg-type]  # pyright cannot bound C to a dataclass
    for name in values:
        if name not in valid:
            raise InputError(f"{fault}: unknown key {name!r}{nearest(name, valid)}")
    try:
        config: C = _adapter(of).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # a refusal of the whole
            raise InputError(f"{fault}: {first['msg'].removeprefix('Value error, ')}") from None
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{fault}: {where} is {str(first['input'])[:60]!r}; {first['msg']}") from None
    for name in valid:
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) > MOST_NUMBERS:
            raise InputError(f"{fault}: {name} has {len(value):,} numbers, expected at most {MOST_NUMBERS}")
        for number in value if isinstance(value, tuple) else (value,):
            # A size of 0 means that a part is left out. A scale is never 0.
            if isinstance(number, int):
                sensible = 0 <= number < LARGEST
            else:
                sensible = not isinstance(number, float) or 0 < number < float("inf")
            if not sensible:
                raise InputError(f"{fault}: {name} is {value!r:.60}, expected a number above 0")
    return config
