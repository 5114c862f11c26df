"""Functions that put guided channels beside others: cat, where, copy_ and jax's ``x.at[...].set``."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from . import arithmetic, stores, unpacking
from .calls import Call
from .indexing import cuts_of
from .values import Many, Parts, Root, Thing, Value, unique

if TYPE_CHECKING:
    from .flow import Flow, Names


def at(flow: Flow, node: ast.Call, at: ast.Subscript, base: ast.expr, how: str, names: Names) -> list[Thing]:
    found: list[Thing] = []
    given = flow.alternatives(node.args[0], names) if node.args else []
    for thing in flow.alternatives(base, names):
        if not isinstance(thing, Value):
            continue
        for cuts in cuts_of(flow, at.slice, thing, at, names):
            for value in given:
                if not isinstance(value, Value):
                    continue
                if how in ("add", "multiply", "mul"):
                    part = thing
                    for cut in cuts:
                        part = part.cut(cut)
                    op = ast.Add() if how == "add" else ast.Mult()
                    value = arithmetic.combine(flow, op, part, value, node)
                found.append(stores.stored(flow, thing, cuts, value, node))
    return unique(found) or [flow.unknown(node)]


def join(c: Call) -> list[Thing]:
    """cat: joins guided channels with others, or doubles a batch."""
    flow, line = c.flow, c.node.lineno
    axis_node = c.operand(1, "dim", "axis")
    axis = c.integer(axis_node, 0 if axis_node is None else None)
    if c.name in ("hstack", "column_stack"):
        axis = 1
    parts: list[list[Thing]] = []
    for thing in c.things(c.operand(0, "tensors", "arrays", "values", "x", "input")):
        if isinstance(thing, Many):
            parts += thing.items
        elif isinstance(thing, Parts):
            parts += unpacking.known_items(flow, thing)
    values = [[thing for thing in part if isinstance(thing, Value)] for part in parts]
    flat = [value for part in values for value in part]
    guided = frozenset(taint for value in flat for taint in value.guided)
    if axis == 0 and flat:
        # The batch is doubled: the first part stands for all, cut along the channels as they are.
        chosen = next((v for v in flat if v.guided), None)
        if chosen is not None:
            same = [replace(v, guided=v.guided | guided) for v in values[0] if v.guided] or [chosen]
            if _channels_joined(flow, values, line, axis):
                return [replace(flow.unknown(c.node), guided=guided)]
            return list(same)
    elif guided:
        _channels_joined(flow, values, line, axis)
    tokens = any(value.tokens for value in flat)
    root = Root(f"{flow.frame}@cat{line}:{c.node.col_offset}", "other", c.node, tokens=tokens)
    return [replace(flow.alone(root), guided=frozenset(t for t in guided if not t[1]))]


def _channels_joined(flow: Flow, values: list[list[Value]], line: int, axis: int | None) -> bool:
    """Note guided channels that are put beside channels that are not guided."""
    others = [v for part in values for v in part if not v.guided]
    if not others:
        return False
    roots = frozenset(atom.root.key for value in others for atom in value.atoms.values())
    joined = False
    for value in (v for part in values for v in part):
        for taint in value.guided:
            own = flow.combinations.found[taint[0]].cuts
            if axis == 0 and not any(cut.axis == 0 for cut in own):
                continue
            flow.combinations.join(taint, line, axis, beside=roots)
            joined = True
    return joined


def scatter(c: Call) -> list[Thing]:
    """slice_scatter(x, guided, dim, start, end): guided channels are written into x."""
    base = c.values(c.operand(0, "input", "operand"))
    axis_at = 1 if c.name.startswith("index_copy") else 2
    axis = c.integer(c.operand(axis_at, "dim", "axis"), 0)
    source = c.operand(3 if axis_at == 1 else 1, "source", "src", "tensor", "update")
    guided: frozenset = frozenset()
    for value in c.values(source):
        guided |= value.guided
        for taint in value.guided:
            c.flow.combinations.join(taint, c.node.lineno, axis)
    return [replace(value, guided=value.guided | guided) for value in base]


def copy(c: Call) -> list[Thing]:
    """``out[:, :3].copy_(value)`` is a store."""
    things = c.things(c.operand(1, "src"))
    target = c.operands[0]
    if isinstance(target, ast.Subscript):
        stores.store(c.flow, target, things, c.names, c.node)
    elif isinstance(target, ast.Name):
        c.names[target.id] = things
    return things


def where(c: Call) -> list[Thing] | None:
    """where(mask, a, b): either; by a mask of channels, some of each."""
    if len(c.operands) != 3:
        return None
    masks = [value.mask.cut for value in c.values(c.operands[0]) if value.mask is not None]
    found = [thing for node in c.operands[1:] for thing in c.things(node)]
    for mask in masks[:1]:
        for thing in found:
            if isinstance(thing, Value):
                c.flow.combinations.mark(thing, mask, c.node.lineno)
    return unique(found)
