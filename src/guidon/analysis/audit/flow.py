"""Follows values through the functions of a module, without running them, and collects guidance combinations.

Every name holds a list of alternatives: what the branches of an ``if`` left in it. Loops are read once. Calls of
functions of the same module are followed, a few levels deep. Everything else is a value of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from . import algebra, tensors
from .values import (
    Atom,
    Bound,
    Cut,
    Function,
    Many,
    Mask,
    Parts,
    Root,
    Shape,
    Span,
    Table,
    Taint,
    Thing,
    Value,
    names_tokens,
    role_of,
    text_of,
    unique,
)

MOST_ALTERNATIVES = 6
MOST_CALLS = 3
"""How deep calls of the module's own functions are followed."""
MOST_FOLLOWED = 100
"""How many such calls are followed in one function."""
FORWARD = {"forward", "__call__", "apply", "_forward"}
"""Functions that are networks; their inside is not followed."""

MOST = 1e9
"""A larger number counts no channels and is no scale."""

Names = dict[str, list[Thing]]

_GUIDANCE = re.compile(r"cfg|guid|classifier.?free", re.IGNORECASE)
_UNCOND = re.compile(r"unc(?!e)|null|neg(?!l)|empty|blank|without|(^|_)u(_|$|\d)|(^|_)nc(_|$)", re.IGNORECASE)
_SHAPE_COMMENT = re.compile(r"[\[(]\s*([\w .*/^+-]+(?:,\s*[\w .*/^+-]+){1,5}),?\s*[\])]")
_LIBRARY_FUNCTIONS = re.compile(r"^(torch|th|np|numpy|jnp|jax|F|math|tf|nn|scipy|cv2)\b")


@dataclass
class Combination:
    """One guidance combination: u + s (c - u) in some spelling."""

    function: str
    line: int
    source: str
    cond: Atom
    others: list[Atom]
    factor: str
    """The factor of the conditional branch, as text: the scale."""
    formula: str
    order: str
    cuts: tuple[Cut, ...]
    """What was cut out of all branches alike, on other axes than the batch."""
    holes: tuple[Cut, ...]
    mask: Mask | None
    names: tuple[str, str]
    """The names of the conditional and the unconditional branch."""
    roots: frozenset[str]
    """Keys of the tensors that the branches were cut from."""


@dataclass
class Site:
    """A combination, with what was cut from its result, and where it is joined with channels that are not guided."""

    combination: Combination
    cuts: tuple[Cut, ...]
    joins: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    """Line and axis of each place where it is joined."""
    complement: bool = False
    """Whether ``cuts`` are the channels that are left out."""


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


class Flow:
    """Reads a module; ``sites`` holds what it found."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.sites: dict[tuple[int, tuple[str, ...], bool], Site] = {}
        self.combinations: list[Combination] = []
        self.known: dict[tuple[str, int, int, str], int] = {}
        self.labels: dict[str, set[str]] = {}
        """The variables that hold an atom."""
        self.sums: dict[str, str] = {}
        """A variable that holds a sum, by the sum."""
        self.dims: dict[str, tuple[str, ...]] = {}
        """What the code calls the axes of a variable."""
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
        outer = (self.function, self.frame, self.dims, self.returned)
        prefix = "" if self.function == "<module>" else f"{self.function}."
        self.function, self.frame, self.dims = f"{prefix}{node.name}", f"{self.frame}/{node.lineno}", {}
        self.returned = []
        if not outer[1]:
            self.calls_left = MOST_FOLLOWED
        inner = {**names, **self.parameters(node)}
        self.axes_from_comments(node)
        self.statements(node.body, inner)
        self.function, self.frame, self.dims, self.returned = outer

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
        outer = (self.frame, self.dims, self.returned)
        self.frame, self.dims, self.returned = f"{self.frame}>{node.lineno}:{node.col_offset}", {}, []
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
        self.frame, self.dims, self.returned = outer
        return unique(found)

    def method(self, name: str) -> Function | None:
        """The method of the class around the code that is read."""
        for node in self.scope.body if self.scope else ():
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
                    self.assign(target, things, names, node)
            case ast.AnnAssign(value=ast.expr() as value):
                self.axes_from_annotation(node)
                self.assign(node.target, self.alternatives(value, names), names, node)
            case ast.AugAssign():
                left = self.alternatives(node.target, names)
                right = self.alternatives(node.value, names)
                things = self.arithmetic(node.op, left, right, node, names)
                self.assign(node.target, things, names, node)
            case ast.Expr():
                self.alternatives(node.value, names)
            case ast.Return(value=ast.expr() as value):
                self.returned += self.alternatives(value, names)
            case ast.If():
                self.alternatives(node.test, names)
                self.fork((node.body, node.orelse), names)
            case ast.For() | ast.AsyncFor():
                self.assign(node.target, self.items_of(self.alternatives(node.iter, names), node.iter), names, node)
                self.fork((node.body, ()), names)
                self.statements(node.orelse, names)
            case ast.While():
                self.alternatives(node.test, names)
                self.fork((node.body, node.orelse), names)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    things = self.alternatives(item.context_expr, names)
                    if item.optional_vars is not None:
                        self.assign(item.optional_vars, things, names, node)
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

    def assign(self, target: ast.expr, things: list[Thing], names: Names, node: ast.AST) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = things
                self.label(name, things)
            case ast.Attribute():
                names[text_of(target)] = things
                self.label(target.attr, things)
            case ast.Starred():
                self.assign(target.value, things, names, node)
            case ast.Tuple() | ast.List():
                count = len(target.elts)
                for position, element in enumerate(target.elts):
                    if any(isinstance(e, ast.Starred) for e in target.elts):
                        count = 0
                    items = [item for thing in things for item in self.item(thing, position, count or None, target)]
                    self.assign(element, unique(items) or [self.unknown(element)], names, node)
                self.axes_from_shape(target, things, node)
            case ast.Subscript():
                self.store(target, things, names, node)
            case _:
                pass

    def store(self, target: ast.Subscript, things: list[Thing], names: Names, node: ast.AST) -> None:
        """``base[cut] = value``: guided channels put beside others, or others put into a guided tensor."""
        base = self.alternatives(target.value, names)
        where = text_of(target.value)
        if isinstance(target.slice, ast.Constant) and isinstance(target.slice.value, str):
            names[text_of(target)] = things
            self.items_stored = True
            return
        result: list[Thing] = []
        for thing in base:
            if not isinstance(thing, Value):
                continue
            for cuts in self.cuts(target.slice, thing, target, names):
                result += [self.stored(thing, cuts, value, node) for value in things if isinstance(value, Value)]
        if result:
            names[where] = unique(result)

    def stored(self, base: Value, cuts: list[Cut], value: Value, node: ast.AST) -> Value:
        line = getattr(node, "lineno", 0)
        source = getattr(node, "value", None)
        text = text_of(source) if isinstance(source, ast.AST) else "s"
        channel = [cut for cut in cuts if cut.axis != 0]
        if value.guided:
            for taint in value.guided:
                self.join(taint, line, channel[0].axis if channel else None)
            return replace(base, guided=base.guided | value.guided) if channel else value
        if not channel or len(channel) > 1:
            return base
        cut = replace(channel[0], line=line)
        roots = {atom.root.key for atom in value.atoms.values()}
        for number, after in base.guided:
            combination = self.combinations[number]
            if not after and not combination.cuts and roots & combination.roots:
                site = self.site(number, (cut,), complement=True)
                site.joins.append((line, cut.axis))
        if (atom := base.atom) and atom.root.kind == "fresh":
            inside = "1" if value.number == 1 or text == "True" else text
            return replace(base, mask=base.mask or Mask(cut, atom.key, inside))
        if algebra.difference(base.terms) and (value.number == 0 or not value.terms):
            return replace(base, holes=(*base.holes, cut))
        if base.atom and value.atom and base.atom.key != value.atom.key and value.atom.cuts:
            return replace(base, holes=(*base.holes, cut))
        return base

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
                return self.arithmetic(node.op, left, right, node, names)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
                found = [t for t in self.alternatives(node.operand, names) if isinstance(t, Value)]
                return [replace(v, terms=algebra.add({}, v.terms, sign)) for v in found]
            case ast.Call():
                return tensors.call(self, node, names)
            case ast.Subscript():
                return self.subscript(node, names)
            case ast.Tuple() | ast.List():
                return [self.many(node.elts, names)]
            case ast.NamedExpr():
                things = self.alternatives(node.value, names)
                self.assign(node.target, things, names, node)
                return things
            case ast.IfExp():
                self.alternatives(node.test, names)
                return unique(self.alternatives(node.body, names) + self.alternatives(node.orelse, names))
            case ast.BoolOp():
                return unique([thing for value in node.values for thing in self.alternatives(value, names)])
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                return self.comprehension(node, names)
            case ast.Dict():
                return [self.table(node, names)]
            case ast.Lambda():
                return [Function(node, names)]
            case ast.Await() | ast.Starred() | ast.YieldFrom():
                return self.alternatives(node.value, names)
            case ast.Yield(value=ast.expr() as value):
                return self.alternatives(value, names)
            case ast.Compare():
                return self.compare(node, names)
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
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            if (known := self.attribute(node.attr)) is not None:
                return known
            if (method := self.method(node.attr)) is not None and node.attr not in FORWARD:
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

    def inside(self, root: Root, suffix: str, node: ast.AST) -> Root:
        """A part of a value that is no tensor: an attribute, or the item of a dictionary."""
        name = suffix.strip(".'\"[]")
        return Root(
            f"{root.key}{suffix}", root.kind, node, function=root.function, call=root.call,
            tokens=root.tokens or names_tokens(name),
        )  # fmt: skip

    def arithmetic(
        self, op: ast.operator, left: list[Thing], right: list[Thing], node: ast.AST, names: Names
    ) -> list[Thing]:
        found: list[Thing] = []
        for a, b in list(product(left, right))[: 2 * MOST_ALTERNATIVES]:
            if isinstance(a, Value) and isinstance(b, Value):
                found.append(self.combine(op, a, b, node))
            elif isinstance(a, Many) and isinstance(b, Many) and isinstance(op, ast.Add):
                found.append(Many((*a.items, *b.items)))
            elif isinstance(a, Many) and isinstance(op, ast.Mult):
                found.append(a)
        return unique(sorted(found, key=lambda thing: isinstance(thing, Value) and bool(thing.guided)))

    def combine(self, op: ast.operator, a: Value, b: Value, node: ast.AST) -> Value:
        """The value of ``a op b``; notes it if it is guidance."""
        terms: algebra.Sum | None = None
        match op:
            case ast.Add():
                terms = algebra.add(a.terms, b.terms)
            case ast.Sub():
                terms = algebra.add(a.terms, b.terms, -1.0)
            case ast.Mult():
                terms = algebra.multiply(a.terms, b.terms)
            case ast.Div():
                if b.number:
                    terms = algebra.add({}, a.terms, 1 / b.number)
                else:
                    inverse = self.alone(Root(f"1/{b.key}", "other", label="1 / (...)"))
                    terms = algebra.multiply(a.terms, inverse.terms)
                    b = replace(inverse, guided=b.guided)
            case ast.FloorDiv() | ast.RShift():
                if (op.__class__ is ast.FloorDiv and b.number == 2) or b.number == 1:
                    return self.half(a, node)
            case ast.Pow():
                if a.number is not None and a.number > 0 and b.number is not None and abs(b.number) < 9:
                    terms = algebra.number(a.number**b.number)
                elif b.number == 2:
                    terms = algebra.multiply(a.terms, a.terms)
            case _:
                pass
        guided = a.guided | b.guided
        if terms is None or len(terms) > algebra.MOST_TERMS:
            return replace(self.unknown(node), guided=guided)
        atoms = {key: atom for key, atom in (*a.atoms.items(), *b.atoms.items())}
        used = {key: atoms[key] for key in algebra.names(terms)}
        result = Value(
            terms, used, guided, tuple(dict.fromkeys((*a.holes, *b.holes))), a.mask or b.mask, a.stacked or b.stacked,
            getattr(node, "lineno", 0),
        )  # fmt: skip
        if isinstance(op, ast.Add | ast.Sub):
            return self.check(result, a, b, node)
        return result

    def half(self, value: Value, node: ast.AST) -> Value:
        """Half of a number of channels: the latent channels, if a network predicts as many variances."""
        atom = value.atom
        of = atom.root.of if atom and atom.root.kind == "shape" else ""
        kind = "call" if atom and atom.root.function else ""
        label = text_of(node)
        root = Root(f"half({value.key})", "half", node, label=label, of=of, function=kind)
        return self.alone(root)

    def compare(self, node: ast.Compare, names: Names) -> list[Thing]:
        """``arange(C) < 3`` is a mask of the first three channels."""
        left = self.alternatives(node.left, names)
        right = [self.alternatives(comparator, names) for comparator in node.comparators]
        result = self.unknown(node)
        for thing in left:
            if not isinstance(thing, Value) or not (atom := thing.atom) or atom.root.kind != "range":
                continue
            high = next((v.number for v in right[0] if isinstance(v, Value) and v.number is not None), None)
            if high is not None and isinstance(node.ops[0], ast.Lt | ast.LtE):
                count = int(high) + isinstance(node.ops[0], ast.LtE)
                cut = Cut(1, "range", high=Bound(str(count), "number", count), line=node.lineno, source=text_of(node))
                return [replace(result, mask=Mask(cut, next(iter(result.atoms)), "1"))]
        return [result]

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

    def comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, names: Names) -> list[Thing]:
        first = node.generators[0]
        source = self.alternatives(first.iter, names)
        inner = dict(names)
        if len(node.generators) == 1 and source and (items := self.known_items(source[0])):
            found: list[list[Thing]] = []
            for item in items:
                self.assign(first.target, item, inner, node)
                found.append(self.alternatives(node.elt, inner))
            return [Many(tuple(found))]
        for generator in node.generators:
            things = self.alternatives(generator.iter, inner)
            self.assign(generator.target, self.items_of(things, generator.iter), inner, node)
        return self.alternatives(node.elt, inner)

    def known_items(self, thing: Thing) -> tuple[list[Thing], ...]:
        """The items of a short tuple, or of a tensor that is split into a known number of parts."""
        if isinstance(thing, Many) and len(thing.items) <= 4:
            return thing.items
        if isinstance(thing, Parts) and thing.count and thing.count <= 4:
            return tuple([thing.part(i, thing.count)] for i in range(thing.count))
        return ()

    def items_of(self, things: list[Thing], node: ast.expr) -> list[Thing]:
        """What a loop's name holds: any item."""
        found: list[Thing] = []
        for thing in things:
            if isinstance(thing, Many):
                found += [t for item in thing.items for t in item]
            elif isinstance(thing, Value) and (atom := thing.atom):
                found.append(self.alone(self.inside(atom.root, "[each]", node)))
        return unique(found) or [self.unknown(node)]

    # parts of values

    def item(self, thing: Thing, index: int, count: int | None, node: ast.AST) -> list[Thing]:
        """Item ``index`` of what is unpacked into ``count`` names."""
        match thing:
            case Many():
                return thing.items[index] if -len(thing.items) <= index < len(thing.items) else []
            case Parts():
                return [thing.part(index, count)]
            case Shape():
                return [self.size(thing, index, node)]
            case Value() if thing.stacked:
                cut = Cut(0, "part", items=(index, count or 2), line=getattr(node, "lineno", 0))
                return [replace(thing.cut(cut), stacked=False)]
            case Value():
                return [thing.cut(Cut(0, "index", items=(index,), line=getattr(node, "lineno", 0)))]
            case _:
                return []

    def size(self, shape: Shape, index: int, node: ast.AST) -> Value:
        """The length of one axis of a tensor."""
        axis = shape.first + index
        atom = shape.value.atom
        of = atom.root.key if atom else shape.value.key
        label = f"{text_of(shape.node)}[{axis}]"
        called = atom.root.function if atom else ""
        root = Root(f"size({shape.value.key},{axis})", "shape", node, label=label, of=of, function=called)
        return self.alone(root)

    def subscript(self, node: ast.Subscript, names: Names) -> list[Thing]:
        index = node.slice
        if self.items_stored and (text := text_of(node)) in names:
            return names[text]
        found: list[Thing] = []
        for thing in self.alternatives(node.value, names):
            match thing:
                case Many() | Parts():
                    position = constant_int(index)
                    if position is not None:
                        found += self.item(thing, position, None, node)
                    elif isinstance(index, ast.Slice) and isinstance(thing, Many):
                        low, high = constant_int(index.lower), constant_int(index.upper)
                        found.append(Many(thing.items[low:high]))
                case Shape():
                    position = constant_int(index)
                    if position is not None:
                        found.append(self.size(thing, position, node))
                    elif isinstance(index, ast.Slice):
                        low = constant_int(index.lower) or 0
                        found.append(replace(thing, first=thing.first + low) if low >= 0 else thing)
                case Table():
                    if isinstance(index, ast.Constant) and isinstance(index.value, str):
                        found += thing.items.get(index.value, [])
                case Value():
                    if isinstance(index, ast.Constant) and isinstance(index.value, str):
                        if (atom := thing.atom) and not atom.cuts:
                            suffix = f"[{index.value!r}]"
                            if atom.root.kind == "call" and not any(c in suffix for c in ("cond", "neg")):
                                found.append(thing)
                            else:
                                found.append(self.alone(self.inside(atom.root, suffix, node)))
                        else:
                            found.append(thing)
                        continue
                    for cuts in self.cuts(index, thing, node, names):
                        value = thing
                        for cut in cuts:
                            value = value.cut(cut)
                        found.append(replace(value, stacked=value.stacked and not cuts))
                case _:
                    pass
        return unique(found)

    def cuts(self, index: ast.expr, base: Value, node: ast.Subscript, names: Names) -> list[list[Cut]]:
        """The parts that an index takes, once for each alternative of its bounds."""
        elements: list[ast.expr | Thing] = [index]
        if isinstance(index, ast.Tuple):
            elements = list(index.elts)
        elif isinstance(index, ast.Name):
            for thing in self.alternatives(index, names):
                if isinstance(thing, Many) and any(isinstance(t, Span) for item in thing.items for t in item):
                    elements = [item[0] for item in thing.items if item]
        elements = [e for e in elements if not (isinstance(e, ast.Constant) and e.value is None)]
        ellipsis = next((i for i, e in enumerate(elements) if is_ellipsis(e)), None)
        choices: list[list[Cut | None]] = []
        for position, element in enumerate(elements):
            if position == ellipsis:
                continue
            axis = position if ellipsis is None or position < ellipsis else position - len(elements)
            if base.stacked and axis >= 0:
                axis -= 1
                if axis < 0:
                    branch = constant_int(element) if isinstance(element, ast.expr) else None
                    choices.append([None if branch is None else Cut(0, "part", items=(branch, 2))])
                    continue
            choices.append(self.element(element, axis, base, node, names))
        sets = product(*choices)
        return [[cut for cut in cuts if cut is not None] for cuts in list(sets)[:MOST_ALTERNATIVES]] or [[]]

    def element(
        self, element: ast.expr | Thing, axis: int, base: Value, node: ast.Subscript, names: Names
    ) -> list[Cut | None]:
        """The part of one axis that one element of an index takes; None for the whole axis."""
        where = self.where(node.value, base, axis, node)
        if isinstance(element, ast.Slice):
            if element.step is not None and constant_int(element.step) != 1:
                return [where("index", text=text_of(element))]
            lows = self.bounds(element.lower, names, base) if element.lower else [None]
            highs = self.bounds(element.upper, names, base) if element.upper else [None]
            return [
                None if low is None and high is None else where("range", low, high)
                for low, high in product(lows, highs)
            ]
        things = self.alternatives(element, names) if isinstance(element, ast.expr) else [element]
        found: list[Cut | None] = []
        for thing in things:
            match thing:
                case Span():
                    whole = thing.low is None and thing.high is None
                    found.append(None if whole else where("range", thing.low, thing.high))
                case Many():
                    items = numbers_of(thing)
                    found.append(where("items", items=items) if items else where("index", text=thing.key))
                case Value():
                    if thing.number is not None:
                        found.append(where("index", items=(int(thing.number),)))
                    elif thing.mask is not None:
                        mask = thing.mask.cut
                        found.append(where(mask.kind, mask.low, mask.high, items=mask.items))
                    elif (bound := self.range_of(thing)) is not None:
                        found.append(where("range", high=bound))
                    else:
                        found.append(where("index", text=thing.key))
                case _:
                    found.append(where("index", text=thing.key))
        return found or [None]

    def range_of(self, value: Value) -> Bound | None:
        """The end of ``range(n)`` or ``arange(n)``."""
        atom = value.atom
        if atom and atom.root.kind == "range" and isinstance(atom.root.node, ast.expr):
            return next(iter(self.bounds(atom.root.node, self.globals, value)), None)
        return None

    def where(self, target: ast.expr, base: Value, axis: int, node: ast.AST) -> tensors.MakeCut:
        """Makes cuts of one axis of an expression."""
        name = self.axis_name(target, base, axis)
        line, source, of = getattr(node, "lineno", 0), text_of(node), text_of(target)

        def make(
            kind: tensors.Kind,
            low: Bound | None = None,
            high: Bound | None = None,
            *,
            items: tuple[int, ...] = (),
            text: str = "",
        ) -> Cut:
            if low is not None and low.number == 0 and low.role == "number":
                low = None
            if kind == "items" and items == tuple(range(len(items))):
                kind, high, items = "range", Bound(str(len(items)), "number", len(items)), ()
            return Cut(axis, kind, low, high, items, text, line, source, name, of)

        return make

    def bounds(self, node: ast.expr, names: Names, base: Value) -> list[Bound]:
        """What one end of a range can be."""
        found = [self.bound(thing, text_of(node), base) for thing in self.alternatives(node, names)]
        return list({(b.text, b.role, b.number): b for b in found}.values())

    def bound(self, thing: Thing, text: str, base: Value) -> Bound:
        if not isinstance(thing, Value):
            return Bound(text, role_of(text))
        if thing.number is not None:
            return Bound(text, "number", int(thing.number))
        atom = thing.atom
        if atom is not None:
            root = atom.root
            if root.kind == "shape":
                return Bound(text, "count")
            if root.kind == "half":
                same = base.atom is not None and root.of == base.atom.root.key
                output = bool(root.function) or same or "out" in root.label
                return Bound(text, "half" if output else "choice")
            role = role_of(root.text) if root.kind in ("name", "call") else role_of(text)
            return Bound(text, "count" if role == "name" and role_of(text) == "count" else role, default=root.default)
        # C - 1, 3 * p * p
        constant = thing.terms.get((), 0.0)
        rest = {product: value for product, value in thing.terms.items() if product}
        if len(rest) == 1:
            (factors, factor), *_ = rest.items()
            if len(factors) == 1 and factor == 1 and constant < 0:
                inner = self.bound(replace(thing, terms={factors: 1.0}), thing.atoms[factors[0]].root.text, base)
                if inner.role == "count":
                    return Bound(text, "less", int(-constant))
            texts = [thing.atoms[key].root.text for key in factors]
            patches = [t for t in texts if re.search(r"patch|(^|\.|_)p[s\d]?$", t, re.IGNORECASE)]
            if not constant and patches and len(patches) == len(texts):
                return Bound(text, "packed", int(factor))
            if not constant and patches and all(role_of(t) == "count" for t in texts if t not in patches):
                return Bound(text, "count" if factor == 1 else "choice")
        return Bound(text, "choice" if role_of(text) == "choice" else "name")

    # what the code calls axes

    def axes_from_comments(self, node: ast.AST) -> None:
        """``eps = ...  # (B, S, C)`` names the axes of eps."""
        for statement in statements_in(node):
            if not isinstance(statement, ast.Assign):
                continue
            last = statement.end_lineno or statement.lineno
            for number in {statement.lineno, last}:
                line = self.module.lines[number - 1] if number <= len(self.module.lines) else ""
                comment = line.partition("#")[2]
                shapes = _SHAPE_COMMENT.findall(comment) if comment else []
                if not shapes or (len(shapes) > 1 and "->" not in comment):
                    continue
                axes = tuple(part.strip() for part in shapes[-1].split(","))
                for target in statement.targets:
                    for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if isinstance(name, ast.Name) and len(axes) >= 3:
                            self.dims.setdefault(name.id, axes)

    def axes_from_annotation(self, node: ast.AnnAssign) -> None:
        """``eps: Float[Tensor, "b s c"]``"""
        for part in ast.walk(node.annotation):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and isinstance(node.target, ast.Name):
                axes = tuple(part.value.split())
                if len(axes) >= 3:
                    self.dims[node.target.id] = axes

    def axes_from_shape(self, target: ast.Tuple | ast.List, things: list[Thing], node: ast.AST) -> None:
        """``b, s, c = eps.shape``"""
        value = getattr(node, "value", None)
        axes = tuple(text_of(element) for element in target.elts)
        if len(axes) < 3 or not any(isinstance(t, Shape) and t.first == 0 for t in things):
            return
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            value = value.func
        if isinstance(value, ast.Attribute):
            self.dims[text_of(value.value)] = axes

    def axis_name(self, target: ast.expr, base: Value, axis: int) -> str | None:
        axes = self.dims.get(text_of(target))
        if axes is not None and -len(axes) <= axis < len(axes):
            return axes[axis]
        if base.tokens:
            return {1: "tokens", -2: "tokens", 2: "packed features", -1: "packed features"}.get(axis)
        return None

    # guidance

    def check(self, value: Value, a: Value, b: Value, node: ast.AST) -> Value:
        """Note the value if it is guidance; returns it, marked."""
        for factors in algebra.affine(value.terms):
            atoms = {key: value.atoms[key] for key in factors}
            found = self.branches(factors, atoms, value.atoms)
            if found is None:
                continue
            number = self.note(found, factors, value, a, b, node)
            if number is not None:
                return replace(value, guided=value.guided | {(number, ())})
        return value

    def branches(
        self, factors: Mapping[str, algebra.Sum], atoms: Mapping[str, Atom], every: Mapping[str, Atom]
    ) -> tuple[Atom, list[Atom], str] | None:
        """The conditional branch, the others, and how they come to be; None if they are no branches of a network."""
        cond_key = max(factors, key=lambda key: (self.is_scale(factors[key]), growth(factors[key])))
        cond = atoms[cond_key]
        others = [atom for key, atom in atoms.items() if key != cond_key]
        scale = self.render(factors[cond_key], every)
        kinds = [self.relation(cond, other, scale) for other in others]
        if any(kind is None for kind in kinds):
            return None
        return cond, others, kinds[-1] or ""

    def relation(self, cond: Atom, uncond: Atom, scale: str) -> str | None:
        """How two branches belong together, or None: two halves of one batch, two calls, or two names that say so."""
        first, second = ([c for c in atom.cuts if c.axis == 0] for atom in (cond, uncond))
        rest = [tuple(c for c in atom.cuts if c.axis != 0) for atom in (cond, uncond)]
        if rest[0] != rest[1]:
            return None
        names = [self.names(cond), self.names(uncond)]
        said = bool(_GUIDANCE.search(self.function) or _GUIDANCE.search(scale)) or named_apart(names[0], names[1])
        if cond.root == uncond.root:
            order = halves(first, second)
            if order is None:
                return None
            sure = order.startswith("one batch") or said or bool(cond.root.function)
            return order if sure else None
        if first != second:
            return None
        if self.two_calls(cond.root, uncond.root):
            early = getattr(cond.root.node, "lineno", 0) <= getattr(uncond.root.node, "lineno", 0)
            return "two calls, cond first" if early else "two calls, uncond first"
        return "two tensors" if said else None

    def two_calls(self, a: Root, b: Root) -> bool:
        """Whether a function is called twice, on the same first argument and another condition."""
        if not a.function or a.function != b.function or _LIBRARY_FUNCTIONS.match(a.function):
            return False
        first, second = a.arguments, b.arguments
        return bool(first) and bool(second) and first != second and first[0] == second[0]

    def names(self, atom: Atom) -> set[str]:
        """The names that hold a branch, or hold what it was cut from."""
        found = set(self.labels.get(atom.key, ()))
        found |= self.labels.get(atom.root.key, set()) if not atom.cuts or not found else set()
        channel = tuple(cut for cut in atom.cuts if cut.axis == 0)
        found |= self.labels.get(Atom(atom.root, channel).key, set())
        return found | {atom.root.text.rsplit(".", 1)[-1]} if not atom.root.function else found

    def note(
        self,
        found: tuple[Atom, list[Atom], str],
        factors: Mapping[str, algebra.Sum],
        value: Value,
        a: Value,
        b: Value,
        node: ast.AST,
    ) -> int | None:
        cond, others, order = found
        shared = tuple(cut for cut in cond.cuts if cut in others[0].cuts)
        # The first axis is the batch; of one sample, it may be the channels.
        cuts = tuple(cut for cut in shared if cut.axis != 0) or shared
        key = (self.frame, getattr(node, "lineno", 0), getattr(node, "col_offset", 0), f"{cond.key}{value.key}")
        if key in self.known:
            return self.known[key]
        factor = factors[cond.key]
        scale = self.render(factor, value.atoms)
        if value.mask is not None:
            scale = (
                value.mask.inside
                if value.mask.inside != "1"
                else self.render(without(factor, value.mask.key), value.atoms)
            )
        combination = Combination(
            self.function, getattr(node, "lineno", 0), text_of(node), cond, others, scale,
            self.formula(cond, others, factor, a, b), order, cuts, value.holes, value.mask,
            (shortest(self.names(cond)) or "cond", shortest(self.names(others[0])) or "uncond"),
            frozenset(atom.root.key for atom in (cond, *others)),
        )  # fmt: skip
        number = self.known[key] = len(self.combinations)
        self.combinations.append(combination)
        if cuts:
            self.site(number, ())
        if value.mask is not None:
            self.site(number, (value.mask.cut,)).joins.append((combination.line, None))
        for hole in value.holes:
            site = self.site(number, (hole,), complement=True)
            site.joins.append((hole.line, hole.axis))
        return number

    def formula(self, cond: Atom, others: list[Atom], factor: algebra.Sum, a: Value, b: Value) -> str:
        """The spelling of the combination."""
        alone = [v.atom.key for v in (a, b) if v.atom is not None]
        if len(others) > 1:
            return "uncond + s1 (cond1 - uncond) + s2 (cond2 - uncond)"
        if others[0].key in alone:
            return "uncond + s (cond - uncond)"
        if cond.key in alone:
            single = len(algebra.add(factor, algebra.number(1), -1.0)) == 1
            return "cond + s (cond - uncond)" if single else "cond + (s - 1) (cond - uncond)"
        return "s cond + (1 - s) uncond"

    def site(self, number: int, cuts: tuple[Cut, ...], complement: bool = False) -> Site:
        key = (number, tuple(cut.key for cut in cuts), complement)
        combination = self.combinations[number]
        if key not in self.sites:
            self.sites[key] = Site(combination, (*combination.cuts, *cuts), complement=complement)
        return self.sites[key]

    def join(self, taint: Taint, line: int, axis: int | None, beside: frozenset[str] | None = None) -> None:
        """A guided tensor is put beside channels that are not guided."""
        number, after = taint
        channel = tuple(cut for cut in after if cut.axis != 0)
        combination = self.combinations[number]
        if not channel and not combination.cuts:
            return
        if channel and beside is not None and not combination.roots & beside:
            return
        site = self.site(number, channel)
        site.joins.append((line, axis))

    def mark(self, value: Value, mask: Cut, line: int) -> None:
        """A mask of channels chooses where a guided tensor is used."""
        for number, _ in value.guided:
            self.site(number, (mask,)).joins.append((line, None))

    # values

    def alone(self, root: Root) -> Value:
        atom = Atom(root)
        line = getattr(root.node, "lineno", 0)
        return Value(algebra.single(atom.key), {atom.key: atom}, line=line)

    def unknown(self, node: ast.AST) -> Value:
        """A value that is not followed."""
        position = f"{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}:{node.__class__.__name__}"
        return self.alone(Root(f"{self.frame}@{position}", "other", node))

    def label(self, name: str, things: list[Thing]) -> None:
        for thing in things:
            if isinstance(thing, Value):
                if (atom := thing.atom) is not None:
                    self.labels.setdefault(atom.key, set()).add(name)
                elif thing.terms and thing.number is None:
                    self.sums[str(sorted(thing.terms.items()))] = name

    def is_scale(self, factor: algebra.Sum) -> bool:
        """Whether a factor is a name, or 1 more than a name, and not what is left of it."""
        for terms in (factor, algebra.add(factor, algebra.number(1), -1.0)):
            if str(sorted(terms.items())) in self.sums:
                return True
            if len(terms) == 1 and min(terms.values()) == 1 and len(next(iter(terms))) == 1:
                return True
        return False

    def render(self, terms: algebra.Sum, atoms: Mapping[str, Atom]) -> str:
        """A factor as Python."""
        name = self.sums.get(str(sorted(terms.items())))
        if name is not None:
            return name
        less = algebra.add(terms, algebra.number(1), -1.0)
        if less and (name := self.sums.get(str(sorted(less.items())))) is not None:
            return f"1 + {name}"
        parts: list[str] = []
        for factors, value in sorted(terms.items(), key=lambda item: (len(item[0]), item[0])):
            shown = [self.text_of_atom(atoms[key]) for key in factors]
            size = f"{abs(value):g}"
            text = " * ".join(shown if size == "1" and shown else [size, *shown])
            parts.append(("- " if value < 0 else "+ ") + text)
        return re.sub("^- ", "-", " ".join(parts).removeprefix("+ ")) or "0"

    def text_of_atom(self, atom: Atom) -> str:
        names = self.labels.get(atom.key) or self.labels.get(atom.root.key, set())
        text = shortest(names) or atom.root.text
        return text if re.fullmatch(r"[\w.\[\]'\"]+", text) else f"({text})"


def without(terms: algebra.Sum, key: str) -> algebra.Sum:
    """A sum in which one factor is 1."""
    total: algebra.Sum = {}
    for factors, value in terms.items():
        total = algebra.add(total, {tuple(k for k in factors if k != key): value})
    return total


def growth(factor: algebra.Sum) -> float:
    """Grows with the scale for the conditional branch: the sign of the longest product, or the number itself."""
    if not factor:
        return 0.0
    longest = max(len(product) for product in factor)
    return sum(value for product, value in factor.items() if len(product) == longest)


def halves(first: list[Cut], second: list[Cut]) -> str | None:
    """The order of two parts of one batch, or None if they are not two parts."""
    if len(first) != len(second) or not first:
        return None
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if len(different) != 1:
        return None
    a, b = different[0]
    if a.kind == b.kind == "part" and a.items[1:] == b.items[1:]:
        return "one batch, cond first" if a.items[0] < b.items[0] else "one batch, uncond first"
    if a.kind == b.kind == "range":
        if a.low is None and a.high is not None and a.high == b.low:
            return "one batch, cond first"
        if b.low is None and b.high is not None and b.high == a.low:
            return "one batch, uncond first"
        return None
    if a.kind == b.kind == "index":
        if a.items and b.items:
            return "two items, cond first" if a.items < b.items else "two items, uncond first"
        starts = [re.match(r"(\d*):", cut.text) for cut in (a, b)]
        if all(starts):
            numbers = [int(start[1] or 0) for start in starts if start]
            return "one batch, cond first" if numbers[0] < numbers[1] else "one batch, uncond first"
    return None


def named_apart(cond: set[str], uncond: set[str]) -> bool:
    """Whether names say that one branch is unconditional and the other is not."""
    said = [any(_UNCOND.search(name) for name in names) for names in (cond, uncond)]
    return said[0] != said[1]


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


def constant_int(node: ast.expr | None) -> int | None:
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
            return -value
        case _:
            return None


def numbers_of(many: Many) -> tuple[int, ...]:
    """The whole numbers in a list, or nothing if it holds anything else."""
    numbers = [item[0].number if item and isinstance(item[0], Value) else None for item in many.items]
    return tuple(int(n) for n in numbers if n is not None) if all(n is not None for n in numbers) else ()


def is_ellipsis(element: ast.expr | Thing) -> bool:
    return isinstance(element, ast.Constant) and element.value is Ellipsis


def shortest(names: Iterable[str]) -> str:
    return min(names, key=lambda name: (len(name), name), default="")
