"""Settings from YAML or JSON files, read into strict models: an unknown key is refused with its nearest valid name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from .errors import InputError, first_line, setting
from .faults import Place, refusal
from .reading import DIGITS, Limit, kind_of, read_object, read_text, reading, require_keys

YAML_BYTES = Limit("GUIDON_MAX_YAML_BYTES", 1 << 19, "bytes of YAML")
"""The size of a YAML file. YAML is slow to parse: a file of this size can take a second."""
YAML_VALUES = Limit("GUIDON_MAX_YAML_VALUES", 1 << 18, "values")
"""The values of a YAML file, those of an alias counted at each use of it."""


class Settings(BaseModel):
    """Base of all settings classes. Objects are frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    also_read: ClassVar[tuple[str, ...]] = ()
    """Keys that are no fields but that a validator of the class reads. Hints for a mistyped key may name them."""

    if not TYPE_CHECKING:  # a type checker reads the arguments from the fields

        def __init__(self, **values: Any) -> None:
            """Make an object of the settings by name.

            Raises:
                InputError: they are not valid.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise InputError(refusal(type(self), values, error, setting)[0]) from None

        __init__.__pydantic_base_init__ = True  # so that pydantic validates fields of this class without it

    @field_validator("*")
    @classmethod
    def _can_name_a_file(cls, value: object) -> object:
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError("a path cannot hold the character NUL")
        return value


S = TypeVar("S", bound=Settings)


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
        return _validated(model, values, source, str)


def _validated(model: type[S], values: Any, source: str, name: Callable[[str], str]) -> S:
    prefix = f"{source}: " if source else ""
    if not isinstance(values, dict):
        raise InputError(f"{prefix}expected a mapping of settings, found {kind_of(values)}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        message, place = refusal(model, values, error, name)
        line = _line_of(source, place)
        raise InputError(f"{source}, line {line}: {message}" if line else prefix + message) from None


def _line_of(source: str, place: Place) -> int | None:
    """The line of a value in a YAML file; None if the source is no such file, or the value is not in it."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") or not place or not path.is_file():
        return None
    node: Any = yaml.compose(path.read_text(encoding="utf-8-sig"), _Loader)
    line = None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part <= len(node.value):
            node = node.value[part - 1]
            line = node.start_mark.line
        else:
            break
    return None if line is None else line + 1


def read_mapping(path: Path, what: str | None = None) -> dict[str, Any]:
    """The keys and values of a YAML or JSON file (JSON if its suffix is ``.json``).

    Args:
        path: the file.
        what: what it should be, with an article: "a study"; None for the name of its format.

    Raises:
        InputError: the file cannot be read, is not text, is empty, is not valid, gives a key twice, holds no keys, or
            is too large.
    """
    if path.suffix == ".json":
        return read_object(path, what or "JSON")
    what = what or "YAML"
    text = read_text(path, what, YAML_BYTES)
    with reading(path, what, "correct it"):
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise ValueError("it is empty, expected keys with values")
            YAML_VALUES.check(_count(node, {}), path)
            return require_keys(loader.construct_document(node), path, what)
        except yaml.MarkedYAMLError as error:  # its first line says what was parsed, not what is wrong
            # a line without ": " is read on, as a key, until the line after it
            is_key = error.context == "while scanning a simple key"
            raise ValueError(f"{error.problem}{_at(error.context_mark if is_key else error.problem_mark)}") from error
        except yaml.reader.ReaderError as error:  # it says how many bytes stand before
            before = text.partition(chr(error.character))[0]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            raise ValueError(f"{error.reason} in line {line}, column {column}") from error
        finally:
            loader.dispose()


_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is several times faster


class _Loader(_Fastest):
    """Says where a value stands that cannot be made, such as a date of month 13."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError) as error:
            value = f"the value {node.value[:60]!r} is not valid ({first_line(error)})"
            raise yaml.constructor.ConstructorError(None, None, value, node.start_mark) from error


def _at(mark: yaml.Mark | None) -> str:
    return f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""


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
            raise ValueError(f"an alias stands inside the value that it repeats,{_at(node.start_mark)}")
        return known[node]
    known[node] = 0
    count = 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and len(node.value) > DIGITS:
            raise ValueError(f"a number has {len(node.value)} digits,{_at(node.start_mark)}")
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count(item, known) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in keys:
                    raise ValueError(f"the key {key.value[:60]!r} is given twice,{_at(key.start_mark)}")
                keys.add(key.value)
            count += _count(key, known) + _count(value, known)
    known[node] = count
    return count
