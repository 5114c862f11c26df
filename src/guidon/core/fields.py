"""Documentation of fields, where ``help`` shows it: Python keeps no docstring of a field."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


def fields_of(kind: type) -> dict[str, tuple[str, str]]:
    """The fields of a class and of its bases, in order: name -> (type, documentation), as the source says them."""
    node: Any = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    found: dict[str, tuple[str, str]] = {}
    for name in map(ast.unparse, node.bases):  # a TypedDict does not keep its bases
        base = getattr(sys.modules[kind.__module__], name, None)
        found |= fields_of(base) if isinstance(base, type) and "__annotations__" in vars(base) else {}
    body: list[Any] = node.body
    for part, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found[ast.unparse(part.target)] = ast.unparse(part.annotation), inspect.cleandoc(str(text))
    return found


def documented(kind: T) -> T:
    """The class, with its fields in its docstring, so that ``help`` shows them."""
    with suppress(OSError):  # an application that was packed without its sources
        kind.__doc__ = f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{listed(kind)}"
    return kind


def listed(kind: type) -> str:
    """The fields of a class as text, one after the other."""
    return "\n".join(f"{name}: {of}\n{textwrap.indent(text, '    ')}" for name, (of, text) in fields_of(kind).items())
