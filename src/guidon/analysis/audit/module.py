"""What the functions of a module share: its functions, classes and imports, and which of them are worth reading."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Module:
    """What the functions of a module share."""

    tree: ast.Module
    text: str
    first_lines: list[int]
    """The lines that ``outline`` has found worth reading."""
    lines: list[str] = field(default_factory=list)
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    """Imported modules: name in this file -> full name."""
    worthy: set[int] = field(default_factory=set)
    """The lines at which functions begin that could hold guidance of some channels."""

    def __post_init__(self) -> None:
        self.lines = self.text.splitlines()
        for node in self.outer_functions():
            first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
            if any(first <= line <= (node.end_lineno or first) for line in self.first_lines):
                self.worthy.add(node.lineno)
        for node in statements_in(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.split(".")[0]
                    self.libraries[name] = alias.name if alias.asname else name
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    self.libraries[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(node.name, node)
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions[node.name] = node

    def outer_functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Functions and methods that are in no other function."""
        bodies = [self.tree.body]
        while bodies:
            for node in bodies.pop():
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield node
                else:
                    bodies += [
                        b for name in ("body", "orelse", "handlers", "finalbody") if (b := getattr(node, name, None))
                    ]


def statements_in(node: ast.AST) -> Iterator[ast.stmt]:
    """Every statement inside a node."""
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        for inner in getattr(node, name, ()):
            if isinstance(inner, ast.stmt):
                yield inner
            yield from statements_in(inner)


def defaults_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> dict[str, ast.expr | None]:
    """The parameters of a function, each with its default or None."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    found: dict[str, ast.expr | None] = {}
    for number, argument in enumerate(positional):
        found[argument.arg] = arguments.defaults[number - missing] if number >= missing else None
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[argument.arg] = default
    for extra in (arguments.vararg, arguments.kwarg):
        if extra is not None:
            found[extra.arg] = None
    return found
