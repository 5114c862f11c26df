"""Which part of a tensor an index takes, and what the ends of a range count."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Literal, Protocol

from .values import Bound, Cut, Many, Span, Thing, Value, counts_latents, role_of, text_of

if TYPE_CHECKING:
    from .flow import Flow, Names

Kind = Literal["range", "items", "index", "part"]
MOST_ALTERNATIVES = 6


class MakeCut(Protocol):
    """Makes a cut of one axis of an expression."""

    def __call__(
        self,
        kind: Kind,
        low: Bound | None = None,
        high: Bound | None = None,
        *,
        items: tuple[int, ...] = (),
        text: str = "",
    ) -> Cut: ...


def cuts_of(flow: Flow, index: ast.expr, base: Value, node: ast.Subscript, names: Names) -> list[list[Cut]]:
    """The parts that an index takes, once for each alternative of its bounds."""
    elements: list[ast.expr | Thing] = [index]
    if isinstance(index, ast.Tuple):
        elements = list(index.elts)
    elif not isinstance(index, ast.Slice | ast.Constant | ast.List):
        for thing in flow.alternatives(index, names):
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
        choices.append(cuts_of_element(flow, element, axis, base, node, names))
    sets = product(*choices)
    return [[cut for cut in cuts if cut is not None] for cuts in list(sets)[:MOST_ALTERNATIVES]] or [[]]


def cuts_of_element(
    flow: Flow, element: ast.expr | Thing, axis: int, base: Value, node: ast.Subscript, names: Names
) -> list[Cut | None]:
    """The part of one axis that one element of an index takes; None for the whole axis."""
    where = cutter(flow, node.value, base, axis, node)
    if isinstance(element, ast.Slice):
        if element.step is not None and constant_int(element.step) != 1:
            return [where("index", text=text_of(element))]
        lows = bounds(flow, element.lower, names, base) if element.lower else [None]
        highs = bounds(flow, element.upper, names, base) if element.upper else [None]
        return [
            None if low is None and high is None else where("range", low, high) for low, high in product(lows, highs)
        ]
    if isinstance(element, ast.List) and (marks := booleans_of(element)):
        return [where("items", items=tuple(number for number, mark in enumerate(marks) if mark))]
    things = flow.alternatives(element, names) if isinstance(element, ast.expr) else [element]
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
                elif (end := range_of(flow, thing)) is not None:
                    each = "each" if thing.atom and thing.atom.root.key.endswith("[each]") else ""
                    found.append(where("range", high=end, text=each))
                else:
                    found.append(where("index", text=thing.key))
            case _:
                found.append(where("index", text=thing.key))
    return found or [None]


def range_of(flow: Flow, value: Value) -> Bound | None:
    """The end of ``range(n)`` or ``arange(n)``."""
    atom = value.atom
    if atom and atom.root.kind == "range" and isinstance(atom.root.node, ast.expr):
        return next(iter(bounds(flow, atom.root.node, flow.globals, value)), None)
    return None


def cutter(flow: Flow, target: ast.expr, base: Value, axis: int, node: ast.AST) -> MakeCut:
    """Makes cuts of one axis of an expression."""
    name = flow.axis_name(target, base, axis)
    line, source, of = getattr(node, "lineno", 0), text_of(node), text_of(target)

    def make(
        kind: Kind,
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


def bounds(flow: Flow, node: ast.expr, names: Names, base: Value) -> list[Bound]:
    """What one end of a range can be."""
    found = [bound(thing, text_of(node), base) for thing in flow.alternatives(node, names)]
    return list({(b.text, b.role, b.number): b for b in found}.values())


def bound(thing: Thing, text: str, base: Value) -> Bound:
    """What a value counts, as one end of a range of a tensor."""
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
        few = root.default is not None and root.default.isdecimal() and int(root.default) <= 3
        if role == "count" and few and not counts_latents(root.text):
            return Bound(text, "choice", default=root.default)
        return Bound(text, "count" if role == "name" and role_of(text) == "count" else role, default=root.default)
    # C - 1, 3 * p * p
    constant = thing.terms.get((), 0.0)
    rest = {product: value for product, value in thing.terms.items() if product}
    if len(rest) == 1:
        (factors, factor), *_ = rest.items()
        if len(factors) == 1 and factor == 1 and constant < 0:
            inner = bound(replace(thing, terms={factors: 1.0}), thing.atoms[factors[0]].root.text, base)
            if inner.role == "count":
                return Bound(text, "less", int(-constant))
        texts = [thing.atoms[key].root.text for key in factors]
        patches = [t for t in texts if re.search(r"patch|(^|\.|_)p[s\d]?$", t, re.IGNORECASE)]
        if not constant and patches and len(patches) == len(texts):
            return Bound(text, "packed", int(factor))
        if not constant and patches and all(role_of(t) == "count" for t in texts if t not in patches):
            return Bound(text, "count" if factor == 1 else "choice")
    return Bound(text, "choice" if role_of(text) == "choice" else "name")


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


def booleans_of(node: ast.List) -> list[bool]:
    """The values of a list of booleans, or nothing if it holds anything else."""
    values = [element.value if isinstance(element, ast.Constant) else None for element in node.elts]
    found = [value for value in values if isinstance(value, bool)]
    return found if len(found) == len(values) else []


def is_ellipsis(element: ast.expr | Thing) -> bool:
    return isinstance(element, ast.Constant) and element.value is Ellipsis
