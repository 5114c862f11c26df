"""What is assigned: to names, and into parts of tensors."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from . import algebra, unpacking
from .indexing import cuts_of
from .values import Cut, Mask, Thing, Value, text_of, unique

if TYPE_CHECKING:
    from .flow import Flow, Names


def assign(flow: Flow, target: ast.expr, things: list[Thing], names: Names, node: ast.AST) -> None:
    match target:
        case ast.Name(id=name):
            names[name] = things
            flow.combinations.label(name, things)
        case ast.Attribute():
            names[text_of(target)] = things
            flow.combinations.label(target.attr, things)
        case ast.Starred():
            assign(flow, target.value, things, names, node)
        case ast.Tuple() | ast.List():
            count = len(target.elts)
            for position, element in enumerate(target.elts):
                if any(isinstance(e, ast.Starred) for e in target.elts):
                    count = 0
                items = [
                    item for thing in things for item in unpacking.item(flow, thing, position, count or None, target)
                ]
                assign(flow, element, unique(items) or [flow.unknown(element)], names, node)
            flow.axes.from_shape(target, things, node)
        case ast.Subscript():
            store(flow, target, things, names, node)
        case _:
            pass


def store(flow: Flow, target: ast.Subscript, things: list[Thing], names: Names, node: ast.AST) -> None:
    """``base[cut] = value``: guided channels put beside others, or others put into a guided tensor."""
    base = flow.alternatives(target.value, names)
    where = text_of(target.value)
    if isinstance(target.slice, ast.Constant) and isinstance(target.slice.value, str):
        names[text_of(target)] = things
        flow.items_stored = True
        return
    result: list[Thing] = []
    for thing in base:
        if not isinstance(thing, Value):
            continue
        for cuts in cuts_of(flow, target.slice, thing, target, names):
            result += [stored(flow, thing, cuts, value, node) for value in things if isinstance(value, Value)]
    if result:
        names[where] = unique(result)


def stored(flow: Flow, base: Value, cuts: list[Cut], value: Value, node: ast.AST) -> Value:
    line = getattr(node, "lineno", 0)
    source = getattr(node, "value", None)
    text = text_of(source) if isinstance(source, ast.AST) else "s"
    channel = [cut for cut in cuts if cut.axis != 0]
    if value.guided:
        for taint in value.guided:
            one_sample = any(cut.axis == 0 for cut in flow.combinations.found[taint[0]].cuts)
            if channel or one_sample:
                flow.combinations.join(taint, line, channel[0].axis if channel else None)
        return replace(base, guided=base.guided | value.guided) if channel else value
    if not channel or len(channel) > 1:
        return base
    cut = replace(channel[0], line=line)
    roots = {atom.root.key for atom in value.atoms.values()}
    for number, after in base.guided:
        combination = flow.combinations.found[number]
        if not after and not combination.cuts and roots & combination.roots:
            site = flow.combinations.site(number, (cut,), complement=True)
            site.joins.append((line, cut.axis))
    if (atom := base.atom) and atom.root.kind == "fresh":
        inside = "1" if value.number == 1 or text == "True" else text
        return replace(base, mask=base.mask or Mask(cut, atom.key, inside))
    if algebra.difference(base.terms) and (value.number == 0 or not value.terms):
        return replace(base, holes=(*base.holes, cut))
    if base.atom and value.atom and base.atom.key != value.atom.key and value.atom.cuts:
        return replace(base, holes=(*base.holes, cut))
    return base
