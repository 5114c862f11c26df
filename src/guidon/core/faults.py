"""Says in one line what is wrong with settings that pydantic refused, and where it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .errors import InputError, nearest, quoted

Place = tuple[str | int, ...]
"""Where a value is: keys of mappings, and numbers of items, which count from 1."""


def refusal(
    model: type[BaseModel], values: Any, error: ValidationError, name: Callable[[str], str]
) -> tuple[str, Place]:
    """What is wrong with the first faulty value, in one line, and where it is.

    Args:
        model: the class that refused the values.
        values: what it was given.
        error: its refusal.
        name: spells the name of a setting.
    """
    faults = [(*_place(values, fault), fault) for fault in error.errors()]
    place, union, first = faults[0]
    if (
        first["type"] == "missing"
    ):  # a misspelt key is unknown, and the key that it should be is missing: say the former
        place, union, first = next((each for each in faults if each[2]["type"] == "extra_forbidden"), faults[0])
    if union is not None:  # a value that fits no type of a union has a fault for each: take the one that came furthest
        faults = [each for each in faults if each[0][: len(union)] == union and each[1] == union]
        place, _, first = max(faults, key=lambda each: len(each[0]))
    key, where = _spelled(place, name)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{where}{nearest(str(place[-1]), _keys_at(model, first['loc']))}", place
    if first["type"] == "missing":
        example = _example(model, first["loc"])
        return f"the key {key!r}{where} is missing" + (f", as in {place[-1]}: {example}" if example else ""), place
    given = first.get("input")
    empty = given is None and name is str  # a key of a file, with nothing behind it
    shown = f"{_joined(place, name)} is {'empty' if empty else quoted(given)}"
    if isinstance(
        cause := first.get("ctx", {}).get("error"), InputError
    ):  # its message names the setting and its value
        return cause.spelled(name), place
    if not place:  # a check of several fields; its message names them
        return first["msg"].removeprefix("Value error, "), place
    expected = dict.fromkeys(_expected(fault) for found, _, fault in faults if found == place)
    return f"{shown}: {' or '.join(expected).replace(' or expected ', ' or ')}", place


def _place(values: Any, fault: Any) -> tuple[Place, Place | None]:
    """Where the value of a fault is; and where the union of types is that it belongs to, if it belongs to one.

    The location of a fault holds names of types too, as of those of a union. They are left out.
    """
    place, union, inside = list[str | int](), None, values
    for number, part in enumerate(fault["loc"]):
        if isinstance(inside, dict) and part in inside:
            place, inside = [*place, str(part)], inside[part]
        elif isinstance(inside, list | tuple) and isinstance(part, int) and part < len(inside):
            place, inside = [*place, part + 1], inside[part]
        elif number == 0 or (fault["type"] == "missing" and part == fault["loc"][-1]):
            place, inside = [*place, str(part)], None
        elif union is None:
            union = tuple(place)
    return tuple(place), union


def _spelled(place: Place, name: Callable[[str], str]) -> tuple[str, str]:
    """A key as text, and the item that it is in as text, which is empty where it is in none."""
    items = [number for number, part in enumerate(place) if isinstance(part, int)]
    if not items:
        return ".".join(map(str, place)), ""
    return ".".join(map(str, place[items[-1] + 1 :])), f" in {_joined(place[: items[-1] + 1], name)}"


def _joined(place: Place, name: Callable[[str], str]) -> str:
    """A place as text, such as "settings, item 2, cfg_scale"; its first key is spelled as the user writes it."""
    text = name(str(place[0])) if place else ""
    for before, part in pairwise(place):
        text += f", item {part}" if isinstance(part, int) else f", {part}" if isinstance(before, int) else f".{part}"
    return text


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "path": "a path"}
_KINDS |= {"tuple": "a list", "list": "a list", "dict": "a mapping", "model": "a mapping", "finite": "a finite number"}
_BOUNDS = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}
_BOUNDS |= {"greater_than": ("more than", "gt"), "less_than": ("less than", "lt")}


def _expected(fault: Any) -> str:
    """What a value should have been."""
    type, given = fault["type"], fault.get("ctx", {})
    if type in _BOUNDS:
        words, key = _BOUNDS[type]
        bound = given[key]
        return f"expected {words} {f'{bound:g}' if isinstance(bound, float) else bound}"
    if type == "literal_error":
        names = re.findall("'(.*?)'", given["expected"])
        close = nearest(str(fault.get("input")), names)
        return f"expected {given['expected']}" + (close if close.startswith(" (") else "")
    if type == "too_short":
        return f"expected a list of at least {given['min_length']}"
    if type == "too_long":
        return f"expected a list of at most {given['max_length']}"
    kind = _KINDS.get(type.partition("_")[0])
    return f"expected {kind}" if kind else fault["msg"].removeprefix("Value error, ")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as ``tuple[Section, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _example(model: type[BaseModel], location: tuple[int | str, ...]) -> str | None:
    """The first example of the field at the place of a validation error; None if it has none."""
    field = _model_at(model, location).model_fields.get(str(location[-1]))
    return str(field.examples[0]) if field is not None and field.examples else None


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names that are valid at the place of a validation error, which may be inside nested sections."""
    model = _model_at(model, location)
    return [*model.model_fields, *getattr(model, "also_read", ())]


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the section in which the place of a validation error is."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))  # a part may also be a list index
        inner = next(_models(getattr(field, "annotation", None)), None)
        if inner is not None:
            model = inner
    return model
