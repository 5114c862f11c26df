"""A call in its normal form, whether it is spelled as a method or as a function of a library."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .indexing import bounds
from .values import Bound, Thing, Value, text_of

if TYPE_CHECKING:
    from .flow import Flow, Names

_NUMPY = re.compile(r"^(numpy|jax|cupy|mlx)\b")
_NUMPY_NAMES = {"np", "numpy", "jnp", "jax", "cp", "cupy", "mx", "onp", "xp"}
_TENSORFLOW_NAMES = {"tf", "tensorflow", "paddle"}
_MODULES = {"torch", "th", "F", "ops", "mint", "lax", "einops", "nn", "functional", "jax", "math", "pt", "ms"}


@dataclass(frozen=True)
class Call:
    """A call, spelled as a method or as a function of a library."""

    flow: Flow
    node: ast.Call
    names: Names
    name: str
    library: Literal["torch", "numpy", "tensorflow"]
    operands: tuple[ast.expr, ...]
    """The arguments, the object of a method first."""
    is_method: bool

    def operand(self, position: int, *keywords: str) -> ast.expr | None:
        """The argument at a position, or under one of its names."""
        for keyword in self.node.keywords:
            if keyword.arg in keywords:
                return keyword.value
        found = self.operands[position] if position < len(self.operands) else None
        return None if isinstance(found, ast.Starred) else found

    def things(self, node: ast.expr | None) -> list[Thing]:
        return self.flow.alternatives(node, self.names)

    def values(self, node: ast.expr | None) -> list[Value]:
        return [thing for thing in self.things(node) if isinstance(thing, Value)]

    def integer(self, node: ast.expr | None, default: int | None = None) -> int | None:
        """The number that an argument is, where it is known."""
        if node is None:
            return default
        return next((int(v.number) for v in self.values(node) if v.number is not None), default)

    def bound(self, node: ast.expr | None, base: Value) -> Bound | None:
        if node is None:
            return None
        return next(iter(bounds(self.flow, node, self.names, base)), None)


def normal(flow: Flow, node: ast.Call, names: Names) -> Call | None:
    """The call in its normal form; None if it is no call of a named function."""
    func = node.func
    if isinstance(func, ast.Name):
        full = flow.module.libraries.get(func.id, "")
        name = full.rsplit(".", 1)[-1] if full else func.id
        return Call(flow, node, names, name, _library(full), tuple(node.args), False)
    if not isinstance(func, ast.Attribute):
        return None
    base = text_of(func.value)
    first = base.split(".")[0]
    full = flow.module.libraries.get(first, first)
    is_module = (
        first in flow.module.libraries or first in _MODULES or first in _NUMPY_NAMES or first in _TENSORFLOW_NAMES
    ) and first not in names
    if is_module and re.fullmatch(r"[\w.]+", base):
        return Call(flow, node, names, func.attr, _library(full, first), tuple(node.args), False)
    return Call(flow, node, names, func.attr, "torch", (func.value, *node.args), True)


def _library(full: str, first: str = "") -> Literal["torch", "numpy", "tensorflow"]:
    if first in _NUMPY_NAMES or _NUMPY.match(full):
        return "numpy"
    if first in _TENSORFLOW_NAMES or full.startswith(("tensorflow", "paddle")):
        return "tensorflow"
    return "torch"
