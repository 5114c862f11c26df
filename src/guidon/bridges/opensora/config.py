"""Reads an inference configuration of Open-Sora, as data: its syntax tree is looked at, and nothing in it is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import InputError, quoted
from ...core.reading import read_text

WHAT = "an inference configuration of Open-Sora"
DEEPEST = 8  # configurations of which one is the base of the next
_LARGEST = 2**53  # of numbers in arithmetic: a configuration must not ask for more work than reading it
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
WHOLE, NUMBER, TEXT, EACH = "a whole number", "a number", "a text", "a text or a list of texts"
"""What a value of a configuration must be."""


def read_config(path: Path, depth: int = 0) -> dict[str, Any]:
    """The values of a configuration, with those of its ``_base_`` below them.

    Texts, numbers, lists, ``dict(...)``, arithmetic and earlier names are read. Anything else is refused.

    Raises:
        InputError: it cannot be read, or holds what is no such value; the message names the line.
    """
    if depth > DEEPEST:
        raise InputError(f"{path} has more than {DEEPEST} configurations below it: give one without _base_")
    text = read_text(path, WHAT)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(f"{path}{line}: this is no Python, which {WHAT} is written in: give another file") from None
    values: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(target, ast.Name):
            raise InputError(f"{path}, line {statement.lineno}: {WHAT} holds assignments such as seed = 42 only")
        try:
            values[target.id] = _value(statement.value, values)
        except RecursionError:
            raise InputError(f"{path}, line {statement.lineno}: the value is nested too deeply") from None
        except (_NoValueError, ArithmeticError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {statement.lineno}: {target.id} cannot be read as data ({error}): write the value itself"
            ) from None
    bases = values.pop("_base_", ())
    check_values({"_base_": bases}, {"_base_": EACH}, path)
    below: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases or ():
        below = _merged(below, read_config(path.parent / str(base), depth + 1))
    return _merged(below, values)


class _NoValueError(Exception):
    """An expression that is no data."""


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an expression. Its syntax tree decides; no code is run."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        if node.id in names:
            return names[node.id]
        raise _NoValueError(f"the name {node.id!r} has no value above")
    if isinstance(node, ast.List | ast.Tuple):
        found = [_value(each, names) for each in node.elts]
        return found if isinstance(node, ast.List) else tuple(found)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            str(_value(key, names)): _value(value, names)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
        return {str(keyword.arg): _value(keyword.value, names) for keyword in node.keywords if _is_named(keyword)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(_value(node.operand, names))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        sides = [_value(node.left, names), _value(node.right, names)]
        if isinstance(node.op, ast.Add) and all(isinstance(side, str) for side in sides):
            return "".join(sides)
        left, right = map(_number, sides)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise _NoValueError(f"the power {right} is too high")
        return _number(_ARITHMETIC[type(node.op)](left, right))
    raise _NoValueError(f"{ast.unparse(node)[:60]!r} is no text, number, list or dict(...)")


def _is_named(keyword: ast.keyword) -> bool:
    if keyword.arg is None:
        raise _NoValueError("** is not read")
    return True


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise _NoValueError(f"arithmetic needs numbers of a common size, not {quoted(value)}")
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both; those above win, inside dictionaries too."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def check_values(values: Mapping[str, Any], expected: Mapping[str, str], source: Path) -> None:
    """Refuse values of other types.

    Raises:
        InputError: the message names the key, what it is, and what it must be.
    """
    for name, what in expected.items():
        value = values.get(name)
        each = value if isinstance(value, list | tuple) and what is EACH else [value]
        if not all(one is None or _is(one, what) for one in each):
            raise InputError(f"{source}: {name} is {quoted(value)}, expected {what}")


def _is(value: Any, what: str) -> bool:
    if what in (TEXT, EACH):
        return isinstance(value, str)
    kinds = int if what is WHOLE else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= _LARGEST
