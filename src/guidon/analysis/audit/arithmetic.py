"""What sums, products and comparisons are; every sum is checked for guidance."""

from __future__ import annotations

import ast
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from . import algebra
from .combinations import Place
from .indexing import MOST_ALTERNATIVES
from .values import Bound, Cut, Many, Mask, Root, Thing, Value, text_of, unique

if TYPE_CHECKING:
    from .flow import Flow, Names


def arithmetic(
    flow: Flow, op: ast.operator, left: list[Thing], right: list[Thing], node: ast.AST, names: Names
) -> list[Thing]:
    found: list[Thing] = []
    for a, b in list(product(left, right))[: 2 * MOST_ALTERNATIVES]:
        if isinstance(a, Value) and isinstance(b, Value):
            found.append(combine(flow, op, a, b, node))
        elif isinstance(a, Many) and isinstance(b, Many) and isinstance(op, ast.Add):
            found.append(Many((*a.items, *b.items)))
        elif isinstance(a, Many) and isinstance(op, ast.Mult):
            found.append(a)
    return unique(sorted(found, key=lambda thing: isinstance(thing, Value) and bool(thing.guided)))


def combine(flow: Flow, op: ast.operator, a: Value, b: Value, node: ast.AST) -> Value:
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
                inverse = flow.alone(Root(f"1/{b.key}", "other", label="1 / (...)"))
                terms = algebra.multiply(a.terms, inverse.terms)
                b = replace(inverse, guided=b.guided)
        case ast.FloorDiv() | ast.RShift():
            if (op.__class__ is ast.FloorDiv and b.number == 2) or b.number == 1:
                return half(flow, a, node)
        case ast.Pow():
            if a.number is not None and a.number > 0 and b.number is not None and abs(b.number) < 9:
                terms = algebra.number(a.number**b.number)
            elif b.number == 2:
                terms = algebra.multiply(a.terms, a.terms)
        case _:
            pass
    guided = a.guided | b.guided
    if terms is None or len(terms) > algebra.MOST_TERMS:
        return replace(flow.unknown(node), guided=guided)
    atoms = {**a.atoms, **b.atoms}
    used = {key: atoms[key] for key in algebra.names(terms)}
    result = Value(
        terms, used, guided, tuple(dict.fromkeys((*a.holes, *b.holes))), a.mask or b.mask, a.stacked or b.stacked,
        getattr(node, "lineno", 0),
    )  # fmt: skip
    if isinstance(op, ast.Add | ast.Sub):
        return flow.combinations.check(result, a, b, Place(flow.function, flow.frame, node))
    return result


def half(flow: Flow, value: Value, node: ast.AST) -> Value:
    """Half of a number of channels: the latent channels, if a network predicts as many variances."""
    atom = value.atom
    of = atom.root.of if atom and atom.root.kind == "shape" else ""
    kind = "call" if atom and atom.root.function else ""
    label = text_of(node)
    root = Root(f"half({value.key})", "half", node, label=label, of=of, function=kind)
    return flow.alone(root)


def compare(flow: Flow, node: ast.Compare, names: Names) -> list[Thing]:
    """``arange(C) < 3`` is a mask of the first three channels."""
    left = flow.alternatives(node.left, names)
    right = [flow.alternatives(comparator, names) for comparator in node.comparators]
    result = flow.unknown(node)
    for thing in left:
        if not isinstance(thing, Value) or not (atom := thing.atom) or atom.root.kind != "range":
            continue
        high = next((v.number for v in right[0] if isinstance(v, Value) and v.number is not None), None)
        if high is not None and isinstance(node.ops[0], ast.Lt | ast.LtE):
            count = int(high) + isinstance(node.ops[0], ast.LtE)
            cut = Cut(1, "range", high=Bound(str(count), "number", count), line=node.lineno, source=text_of(node))
            return [replace(result, mask=Mask(cut, next(iter(result.atoms)), "1"))]
    return [result]
