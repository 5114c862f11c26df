"""Parts of values: what is unpacked, what a loop goes over, what a subscript takes."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from . import stores
from .indexing import bounds, constant_int, cuts_of, numbers_of
from .values import Cut, Many, Parts, Root, Shape, Span, Table, Thing, Value, text_of, unique

if TYPE_CHECKING:
    from .flow import Flow, Names


def comprehension(flow: Flow, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, names: Names) -> list[Thing]:
    first = node.generators[0]
    source = flow.alternatives(first.iter, names)
    inner = dict(names)
    if len(node.generators) == 1 and source and (items := known_items(flow, source[0])):
        found: list[list[Thing]] = []
        for item in items:
            stores.assign(flow, first.target, item, inner, node)
            found.append(flow.alternatives(node.elt, inner))
        return [Many(tuple(found))]
    for generator in node.generators:
        things = flow.alternatives(generator.iter, inner)
        stores.assign(flow, generator.target, items_of(flow, things, generator.iter), inner, node)
    found_once = flow.alternatives(node.elt, inner)
    first_thing = source[0] if source else None
    looped = isinstance(first_thing, Value) and first_thing.atom and first_thing.atom.root.kind == "range"
    return [Many((found_once,))] if looped else found_once


def known_items(flow: Flow, thing: Thing) -> tuple[list[Thing], ...]:
    """The items of a short tuple, or of a tensor that is split into a known number of parts."""
    if isinstance(thing, Many) and len(thing.items) <= 4:
        return thing.items
    if isinstance(thing, Parts) and thing.count and thing.count <= 4:
        return tuple([thing.part(i, thing.count)] for i in range(thing.count))
    return ()


def items_of(flow: Flow, things: list[Thing], node: ast.expr) -> list[Thing]:
    """What a loop's name holds: any item."""
    found: list[Thing] = []
    for thing in things:
        if isinstance(thing, Many) and numbers_of(thing):
            found.append(thing)  # every channel in turn is all of them
        elif isinstance(thing, Many):
            found += [t for item in thing.items for t in item]
        elif isinstance(thing, Value) and (atom := thing.atom):
            found.append(flow.alone(flow.inside(atom.root, "[each]", node)))
    return unique(found) or [flow.unknown(node)]


def item(flow: Flow, thing: Thing, index: int, count: int | None, node: ast.AST) -> list[Thing]:
    """Item ``index`` of what is unpacked into ``count`` names."""
    match thing:
        case Many():
            return thing.items[index] if -len(thing.items) <= index < len(thing.items) else []
        case Parts():
            return [thing.part(index, count)]
        case Shape():
            return [size(flow, thing, index, node)]
        case Value() if thing.stacked:
            cut = Cut(0, "part", items=(index, count or 2), line=getattr(node, "lineno", 0))
            return [replace(thing.cut(cut), stacked=False)]
        case Value():
            return [thing.cut(Cut(0, "index", items=(index,), line=getattr(node, "lineno", 0)))]
        case _:
            return []


def size(flow: Flow, shape: Shape, index: int, node: ast.AST) -> Value:
    """The length of one axis of a tensor."""
    axis = shape.first + index
    atom = shape.value.atom
    of = atom.root.key if atom else shape.value.key
    label = f"{text_of(shape.node)}[{axis}]"
    called = atom.root.function if atom else ""
    root = Root(f"size({shape.value.key},{axis})", "shape", node, label=label, of=of, function=called)
    return flow.alone(root)


def span(flow: Flow, element: ast.expr, names: Names) -> Thing:
    """One element of ``np.s_[...]``."""
    if not isinstance(element, ast.Slice):
        return next(iter(flow.alternatives(element, names)))
    base = Value({})
    low = bounds(flow, element.lower, names, base)[0] if element.lower else None
    high = bounds(flow, element.upper, names, base)[0] if element.upper else None
    return Span(low, high)


def subscript(flow: Flow, node: ast.Subscript, names: Names) -> list[Thing]:
    index = node.slice
    if isinstance(node.value, ast.Attribute) and node.value.attr in ("s_", "index_exp"):
        elements = index.elts if isinstance(index, ast.Tuple) else [index]
        return [Many(tuple([span(flow, element, names)] for element in elements))]
    if flow.items_stored and (text := text_of(node)) in names:
        return names[text]
    found: list[Thing] = []
    for thing in flow.alternatives(node.value, names):
        match thing:
            case Many() | Parts():
                position = constant_int(index)
                if position is not None:
                    found += item(flow, thing, position, None, node)
                elif isinstance(index, ast.Slice) and isinstance(thing, Many):
                    low, high = constant_int(index.lower), constant_int(index.upper)
                    found.append(Many(thing.items[low:high]))
            case Shape():
                position = constant_int(index)
                if position is not None:
                    found.append(size(flow, thing, position, node))
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
                            found.append(flow.alone(flow.inside(atom.root, suffix, node)))
                    else:
                        found.append(thing)
                    continue
                for cuts in cuts_of(flow, index, thing, node, names):
                    value = thing
                    for cut in cuts:
                        value = value.cut(cut)
                    found.append(replace(value, stacked=value.stacked and not cuts))
            case _:
                pass
    return unique(found)
