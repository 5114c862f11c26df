"""Settings from YAML or JSON files, read into strict models: an unknown key is refused with its nearest valid name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from .errors import InputError, nearest, setting, written
from .reading import DIGITS, Limit, parse_json, read_text, reading

YAML_BYTES = Limit("GUIDON_MAX_YAML_BYTES", 1 << 19, "bytes of YAML")
"""The size of a YAML file. YAML is slow to parse: a file of this size can take a second."""
YAML_VALUES = Limit("GUIDON_MAX_YAML_VALUES", 1 << 18, "values")
"""The values of a YAML file, those of an alias counted at each use of it."""


class Settings(BaseModel):
    """Base of all settings classes. Objects are frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    also_read: ClassVar[tuple[str, ...]] = ()
    """Keys that are no fields but that a validator of the class reads. Hints for a mistyped key may name them."""

    @field_validator("*")
    @classmethod
    def _can_name_a_file(cls, value: object) -> object:
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError("a path cannot hold the character NUL")
        return value


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
    if not source:
        return _validated(model, values, "", setting)
    with reading(Path(source), "settings"):  # a validator may raise more than ValueError for values of other types
        return _validated(model, values, f"{source}: ", str)


def _validated(model: type[S], values: Any, prefix: str, name: Callable[[str], str]) -> S:
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
        raise InputError(f"{prefix}{name(where)}: given {written(first.get('input'), str)[:80]!r}; {message}") from None


def read_mapping(path: Path) -> Any:
    """The content of a YAML or JSON file (JSON if its suffix is ``.json``).

    Raises:
        InputError: the file cannot be read, is not text, is not valid, gives a key twice, or is too large.
    """
    if path.suffix == ".json":
        return parse_json(read_text(path, "JSON"), path, "JSON")
    text = read_text(path, "YAML", YAML_BYTES)
    with reading(path, "YAML", "correct it"):
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            YAML_VALUES.check(_count(node, {}), path)
            return loader.construct_document(node)
        except yaml.MarkedYAMLError as error:  # its first line says what was parsed, not what is wrong
            mark = error.problem_mark
            where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise ValueError(f"{error.problem}{where}") from error
        finally:
            loader.dispose()


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is several times faster
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """The number of values of a node and of all below it, an alias counted at each use.

    Args:
        node: a node of YAML's graph.
        known: the counts of nodes that were counted already; 0 for a node that is being counted.

    Raises:
        ValueError: an alias stands inside the value that it repeats, a key is given twice, or a number is too long.
    """
    if node in known:
        if not known[node]:
            raise ValueError(f"an alias stands inside the value that it repeats, in line {node.start_mark.line + 1}")
        return known[node]
    known[node] = 0
    count = 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and len(node.value) > DIGITS:
            raise ValueError(f"a number has {len(node.value)} digits, in line {node.start_mark.line + 1}")
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count(item, known) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in keys:
                    raise ValueError(f"the key {key.value[:60]!r} is given twice, in line {key.start_mark.line + 1}")
                keys.add(key.value)
            count += _count(key, known) + _count(value, known)
    known[node] = count
    return count
