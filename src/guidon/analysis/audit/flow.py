"""Follows values through the functions of a module, without running them, and hands sums to ``combinations``.

Every name holds a list of alternatives: what the branches of an ``if`` left in it. Loops are read once. Calls of
functions of the same module are followed, a few levels deep. Everything else is a value of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import replace

from . import algebra, arithmetic, stores, tensors, unpacking
from .axes import Axes
from .combinations import Combinations
from .module import Module, defaults_of
from .values import (
    Atom,
    Function,
    Many,
    Root,
    Shape,
    Table,
    Thing,
    Value,
    names_tokens,
    text_of,
    unique,
)

MOST_CALLS = 3
"""How deep calls of the module's own functions are followed."""
MOST_FOLLOWED = 100
"""How many such calls are followed in one function."""
MOST_ITEMS = 64
"""A longer list or dictionary is data."""
FORWARD = {"forward", "__call__", "apply", "_forward"}
"""Functions that are networks; their inside is not followed."""

MOST = 1e9
"""A larger number counts no channels and is no scale."""

Names = dict[str, list[Thing]]


class Flow:
    """Reads a module; ``sites`` holds what it found."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.combinations = Combinations()
        self.axes = Axes(module.lines)
        self.frame = ""
        self.depth = 0
        self.items_stored = False
        self.stack: list[ast.AST] = []
        self.calls_left = MOST_FOLLOWED
        self.function = "<module>"
        self.scope: ast.ClassDef | None = None
        self.attributes: dict[str, Names] = {}
        self.returned: list[Thing] = []
        self.globals: Names = {}

    # functions

    def read(self) -> None:
        """Read the module's own statements, then every function in it."""
        self.globals = {name: [Function(node, {})] for name, node in self.module.functions.items()}
        self.statements(self.module.tree.body, self.globals)

    def define(self, node: ast.FunctionDef | ast.AsyncFunctionDef, names: Names) -> None:
        """Read a function where it is defined, its parameters unknown."""
        outer = (self.function, self.frame, self.axes, self.returned)
        prefix = "" if self.function == "<module>" else f"{self.function}."
        self.function, self.frame, self.axes = (
            f"{prefix}{node.name}",
            f"{self.frame}/{node.lineno}",
            Axes(self.module.lines),
        )
        self.returned = []
        if not outer[1]:
            self.calls_left = MOST_FOLLOWED
        inner = {**names, **self.parameters(node)}
        self.axes.from_comments(node)
        self.axes.from_text(node)
        self.statements(node.body, inner)
        self.function, self.frame, self.axes, self.returned = outer

    def parameters(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Names:
        """Every parameter as a value of its own."""
        names: Names = {}
        for parameter, default in defaults_of(node).items():
            root = Root(
                f"{self.frame}:{parameter}", "name", label=parameter,
                default=None if default is None else text_of(default), tokens=names_tokens(parameter),
            )  # fmt: skip
            names[parameter] = [self.alone(root)]
        return names

    def call(self, function: Function, arguments: list[list[Thing]], keywords: Names, node: ast.Call) -> list[Thing]:
        """What a function of the module returns for these arguments."""
        body = function.node
        given, bound = function.given
        arguments = [*given, *arguments]
        names = self.parameters(body)
        positional = [a.arg for a in (*body.args.posonlyargs, *body.args.args)]
        if function.method and positional[:1] in (["self"], ["cls"]):
            positional = positional[1:]
        passed = {**dict(zip(positional, arguments, strict=False)), **bound, **keywords}
        for name, default in defaults_of(body).items():
            if name in passed:
                names[name] = passed[name]
            elif default is not None:
                names[name] = self.alternatives(default, self.globals)
        outer = (self.frame, self.axes, self.returned)
        self.frame, self.axes, self.returned = (
            f"{self.frame}>{node.lineno}:{node.col_offset}",
            Axes(self.module.lines),
            [],
        )
        self.depth += 1
        self.calls_left -= 1
        self.stack.append(body)
        inner = {**function.names, **names}
        if isinstance(body, ast.Lambda):
            found = self.alternatives(body.body, inner)
        else:
            self.statements(body.body, inner)
            found = self.returned
        self.depth -= 1
        self.stack.pop()
        self.frame, self.axes, self.returned = outer
        return unique(found)

    def may_follow(self, function: Function) -> bool:
        """Whether a call of a function may be followed: not too deep, not too many, and not from inside itself."""
        return self.depth < MOST_CALLS and self.calls_left > 0 and function.node not in self.stack

    def method(self, name: str, owner: str = "self") -> Function | None:
        """A method of the class around the code that is read, or of another class of the module."""
        scope = self.scope if owner in ("self", "cls") else self.module.classes.get(owner)
        for node in scope.body if scope else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                static = any(text_of(mark) == "staticmethod" for mark in node.decorator_list)
                return Function(node, self.globals, method=not static)
        return None

    def attribute(self, name: str) -> list[Thing] | None:
        """What ``self.name`` is, where the class sets it to a number or to an argument."""
        scope = self.scope
        if scope is None:
            return None
        if scope.name not in self.attributes:
            self.attributes[scope.name] = dict(self.class_attributes(scope))
        return self.attributes[scope.name].get(name)

    def class_attributes(self, scope: ast.ClassDef) -> Iterator[tuple[str, list[Thing]]]:
        for statement in scope.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        yield target.id, self.alternatives(statement.value, {})
            elif isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                defaults = defaults_of(statement)
                for inner in ast.walk(statement):
                    if not isinstance(inner, ast.Assign) or not isinstance(inner.targets[0], ast.Attribute):
                        continue
                    target, value = inner.targets[0], inner.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, int):
                        yield target.attr, self.alternatives(value, {})
                    elif isinstance(value, ast.Name) and value.id in defaults:
                        default = defaults[value.id]
                        text = None if default is None else text_of(default)
                        key = f"self.{target.attr}"
                        yield target.attr, [self.alone(Root(key, "name", label=key, default=text))]

    # statements

    def statements(self, body: Iterable[ast.stmt], names: Names) -> None:
        for statement in body:
            self.statement(statement, names)

    def statement(self, node: ast.stmt, names: Names) -> None:
        match node:
            case ast.Assign():
                things = self.alternatives(node.value, names)
                for target in node.targets:
                    stores.assign(self, target, things, names, node)
            case ast.AnnAssign(value=ast.expr() as value):
                self.axes.from_annotation(node)
                stores.assign(self, node.target, self.alternatives(value, names), names, node)
            case ast.AugAssign():
                left = self.alternatives(node.target, names)
                right = self.alternatives(node.value, names)
                things = arithmetic.arithmetic(self, node.op, left, right, node, names)
                stores.assign(self, node.target, things, names, node)
            case ast.Expr():
                self.alternatives(node.value, names)
            case ast.Return(value=ast.expr() as value):
                self.returned += self.alternatives(value, names)
            case ast.If():
                self.alternatives(node.test, names)
                self.fork((node.body, node.orelse), names)
            case ast.For() | ast.AsyncFor():
                stores.assign(
                    self,
                    node.target,
                    unpacking.items_of(self, self.alternatives(node.iter, names), node.iter),
                    names,
                    node,
                )
                self.fork((node.body, ()), names)
                self.statements(node.orelse, names)
            case ast.While():
                self.alternatives(node.test, names)
                self.fork((node.body, node.orelse), names)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    things = self.alternatives(item.context_expr, names)
                    if item.optional_vars is not None:
                        stores.assign(self, item.optional_vars, things, names, node)
                self.statements(node.body, names)
            case ast.Try() | ast.TryStar():
                self.fork((node.body, *(handler.body for handler in node.handlers)), names)
                self.statements((*node.orelse, *node.finalbody), names)
            case ast.Match():
                self.alternatives(node.subject, names)
                self.fork([case.body for case in node.cases], names)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                method = self.scope is not None and node in self.scope.body
                if not method:
                    names[node.name] = [Function(node, names)]
                if self.depth == 0 and (self.frame or node.lineno in self.module.worthy):
                    self.define(node, names)
            case ast.ClassDef():
                outer = (self.scope, self.function)
                self.scope = node
                self.function = node.name if self.function == "<module>" else f"{self.function}.{node.name}"
                self.statements(node.body, dict(names))
                self.scope, self.function = outer
            case _:
                pass

    def fork(self, bodies: Iterable[Iterable[ast.stmt]], names: Names) -> None:
        """Read alternatives of control flow; afterwards a name holds what any of them left in it."""
        ends: list[Names] = []
        for body in bodies:
            end = dict(names)
            self.statements(body, end)
            ends.append(end)
        changed = {name for end in ends for name, things in end.items() if names.get(name) is not things}
        for name in changed:
            names[name] = unique([thing for end in ends for thing in end.get(name, [])])

    # expressions

    def alternatives(self, node: ast.expr | None, names: Names) -> list[Thing]:
        """The values that an expression can have."""
        if node is None:
            return []
        return self.evaluate(node, names) or [self.unknown(node)]

    def evaluate(self, node: ast.expr, names: Names) -> list[Thing]:
        match node:
            case ast.Constant(value=bool()):
                return [self.unknown(node)]
            case ast.Constant(value=int() | float() as value) if abs(value) < MOST:
                return [Value(algebra.number(value), line=node.lineno)]
            case ast.Name(id=name):
                return self.lookup(name, names)
            case ast.Attribute():
                return self.read_attribute(node, names)
            case ast.BinOp():
                left, right = self.alternatives(node.left, names), self.alternatives(node.right, names)
                return arithmetic.arithmetic(self, node.op, left, right, node, names)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
                found = [t for t in self.alternatives(node.operand, names) if isinstance(t, Value)]
                return [replace(v, terms=algebra.add({}, v.terms, sign)) for v in found]
            case ast.Call():
                return tensors.call(self, node, names)
            case ast.Subscript():
                return unpacking.subscript(self, node, names)
            case ast.Tuple() | ast.List() if len(node.elts) <= MOST_ITEMS:
                return [self.many(node.elts, names)]
            case ast.NamedExpr():
                things = self.alternatives(node.value, names)
                stores.assign(self, node.target, things, names, node)
                return things
            case ast.IfExp():
                self.alternatives(node.test, names)
                return unique(self.alternatives(node.body, names) + self.alternatives(node.orelse, names))
            case ast.BoolOp():
                return unique([thing for value in node.values for thing in self.alternatives(value, names)])
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                return unpacking.comprehension(self, node, names)
            case ast.Dict() if len(node.keys) <= MOST_ITEMS:
                return [self.table(node, names)]
            case ast.Lambda():
                return [Function(node, names)]
            case ast.Await() | ast.Starred() | ast.YieldFrom():
                return self.alternatives(node.value, names)
            case ast.Yield(value=ast.expr() as value):
                return self.alternatives(value, names)
            case ast.Compare():
                return arithmetic.compare(self, node, names)
            case _:
                return []

    def lookup(self, name: str, names: Names) -> list[Thing]:
        if name in names:
            return names[name]
        if name in self.globals:
            return self.globals[name]
        return [self.alone(Root(f"{self.function}:{name}", "name", label=name, tokens=names_tokens(name)))]

    def read_attribute(self, node: ast.Attribute, names: Names) -> list[Thing]:
        text = text_of(node)
        if text in names:
            return names[text]
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if own and (known := self.attribute(node.attr)) is not None:
            return known
        if isinstance(node.value, ast.Name) and node.attr not in FORWARD:
            owner = node.value.id
            if owner not in names and (method := self.method(node.attr, owner)) is not None:
                return [method]
            if owner in ("self", "cls") and (method := self.method(node.attr)) is not None:
                return [method]
        base = self.alternatives(node.value, names)
        if node.attr in ("shape",):
            return [Shape(thing, node) for thing in base if isinstance(thing, Value)]
        if node.attr in tensors.SAME_ATTRIBUTES:
            return base
        found: list[Thing] = []
        for thing in base:
            if isinstance(thing, Table) and node.attr in thing.items:
                found += thing.items[node.attr]
            elif isinstance(thing, Value) and (atom := thing.atom) and not atom.cuts:
                found.append(self.alone(self.inside(atom.root, f".{node.attr}", node)))
        return found or [self.unknown(node)]

    def axis_name(self, target: ast.expr, base: Value, axis: int) -> str | None:
        """What the code calls an axis of an expression, or of the variable that it was cut from."""
        variables = [text_of(target)]
        if base.atom is not None:
            variables += self.combinations.variables.get(base.atom.root.key, ())
        return self.axes.name(variables, base, axis)

    def inside(self, root: Root, suffix: str, node: ast.AST) -> Root:
        """A part of a value that is no tensor: an attribute, or the item of a dictionary."""
        name = suffix.strip(".'\"[]")
        origin = root.node if root.kind == "range" else node
        return Root(
            f"{root.key}{suffix}", root.kind, origin, function=root.function, call=root.call,
            tokens=root.tokens or names_tokens(name),
        )  # fmt: skip

    def many(self, elements: list[ast.expr], names: Names) -> Many:
        items: list[list[Thing]] = []
        for element in elements:
            things = self.alternatives(element, names)
            if isinstance(element, ast.Starred) and len(things) == 1 and isinstance(things[0], Many):
                items += things[0].items
            else:
                items.append(things)
        return Many(tuple(items))

    def table(self, node: ast.Dict, names: Names) -> Table:
        items: Names = {}
        for key, value in zip(node.keys, node.values, strict=True):
            things = self.alternatives(value, names)
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                items[key.value] = things
        return Table(items)

    # values

    def alone(self, root: Root) -> Value:
        atom = Atom(root)
        line = getattr(root.node, "lineno", 0)
        return Value(algebra.single(atom.key), {atom.key: atom}, line=line)

    def unknown(self, node: ast.AST) -> Value:
        """A value that is not followed."""
        position = f"{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}:{node.__class__.__name__}"
        return self.alone(Root(f"{self.frame}@{position}", "other", node))
